//! Who belongs to the cluster: its authority, tokens to join by, this node's certificate.
//!
//! ```text
//!   HOME/cluster-authority.json   certificate and key of the authority, on the node that made it
//!   HOME/node-tls.json            certificate and key of this node, certificate of the authority
//!   HOME/node-pending.key         key of a join that is not done; the join can be repeated with it
//! ```
//!
//! A host that joins sends its key's request and the token's secret to the agent that issued the
//! token, over TLS that is pinned to the authority; the certificate and the database's URL come back.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use vmtwin_catalog::{Cluster, NewNode, NodeId};
use vmtwin_cluster::NodeName;
use vmtwin_server::{
    Authority, Certificate, CertificateRequest, Client, Credentials, JoinToken, NodeKey,
    TokenSecret,
};
use zeroize::Zeroizing;

use super::cli::{ClusterJoinArgs, DEFAULT_PORT, TokenArgs};
use super::node::{Identity, host_name, refuse_to_leave_guests};
use crate::db::Db;
use crate::home::{Home, write_new_private, write_private};

/// Files in the home folder.
pub(super) const AUTHORITY: &str = "cluster-authority.json";
pub(super) const NODE: &str = "node-tls.json";
/// What to do where nobody can give this node another one.
pub(super) const DOES_NOT_COUNT: &str = "this node's certificate does not count in the cluster; on another \
    node: vmtwin cluster node remove NAME, then vmtwin cluster token; here: vmtwin cluster join TOKEN";
/// Most of an answer to a join, bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// `cluster-authority.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptAuthority {
    certificate: String,
    key: Zeroizing<String>,
}

/// `node-tls.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptNode {
    pub(super) cluster: String,
    pub(super) authority: String,
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// What a host that joins asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    secret: TokenSecret,
    /// PKCS #10, PEM.
    request: String,
    node: NodeId,
    name: NodeName,
    host: String,
    version: String,
    /// Where its agent will answer.
    address: String,
}

impl JoinRequest {
    /// The name that the host wants.
    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }
}

/// What it gets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinAnswer {
    cluster: Cluster,
    certificate: String,
    authority: String,
    /// URL of the shared database; it may hold a password.
    database: Zeroizing<String>,
}

/// A token, shown once.
#[derive(Serialize)]
pub(crate) struct ShownToken {
    pub(crate) token: Zeroizing<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) expires_at: OffsetDateTime,
}

/// Gives the cluster an authority where it has none, and this node a certificate where it has none that
/// counts and the authority's key is here. May be repeated.
pub(super) fn found(home: &Home, db: &Db, cluster: &Cluster) -> Result<()> {
    if db.run(async |catalog| catalog.authority().await)?.is_none() {
        // The file first: an authority whose key is nowhere would be of no use.
        let made = match kept_authority(home)? {
            Some(made) => made,
            None => make_authority(home, cluster)?,
        };
        let pem = made.certificate_pem().to_owned();
        db.run(async |catalog| catalog.keep_authority(&pem).await)?;
    }
    let kept = credentials(home)?.filter(|(of, _)| *of == cluster.id);
    let is_known = kept.is_some();
    if let Some((_, kept)) = kept
        && counts_until(db, &kept)?.is_some_and(|end| end > OffsetDateTime::now_utc())
    {
        return Ok(());
    }
    let identity = Identity::required(home)?;
    let key = NodeKey::make()?;
    match sign(home, db, &identity.id, &key.request_pem()?)? {
        Some(signed) => keep_node(home, signed.with(cluster.id.clone(), &key)),
        // A node whose old certificate does not count is not one that joined without.
        None if is_known => bail!(DOES_NOT_COUNT),
        None => Ok(()),
    }
}

/// When this certificate of ours ends; none where it does not count: the catalog does not know it (any
/// more), or has another authority than the one that is trusted with it.
pub(super) fn counts_until(db: &Db, of: &Credentials) -> Result<Option<OffsetDateTime>> {
    if db.run(async |catalog| catalog.authority().await)?.as_ref() != Some(&of.authority) {
        return Ok(None);
    }
    let fingerprint = of.fingerprint()?;
    Ok(db.run(async |catalog| catalog.certificate_end(&fingerprint).await)?)
}

/// What was signed for a node.
pub(super) struct Signed {
    /// PEM.
    pub(super) certificate: String,
    /// Of the authority that signed it, PEM.
    pub(super) authority: String,
}

impl Signed {
    /// What this node keeps of it.
    fn with(self, cluster: String, key: &NodeKey) -> KeptNode {
        KeptNode {
            cluster,
            authority: self.authority,
            certificate: self.certificate,
            key: key.to_pem(),
        }
    }
}

/// Signs and notes a certificate for a node of the cluster; none if the authority's key is not here.
pub(super) fn sign(home: &Home, db: &Db, node: &NodeId, request: &str) -> Result<Option<Signed>> {
    let Some(authority) = authority(home, db)? else {
        return Ok(None);
    };
    let cluster = required_cluster(db)?;
    let request = CertificateRequest::from_pem(request)?;
    let signed = authority.sign(&request, node.as_str(), &cluster.id)?;
    let noted = (signed.fingerprint.as_str(), signed.expires_at);
    db.run(async |catalog| catalog.add_certificate(node, noted).await)?;
    Ok(Some(Signed {
        certificate: signed.pem,
        authority: authority.certificate_pem().to_owned(),
    }))
}

/// Makes a new authority in place of one whose key is lost: no certificate counts any more, and all other
/// nodes have to join again.
pub(super) fn found_anew(home: &Home, db: &Db, cluster: &Cluster) -> Result<()> {
    if authority(home, db)?.is_some() {
        bail!(
            "the key of the cluster's authority is on this host: no new one is needed; run the same \
             without --new-authority, which gives this node a certificate if it has none that counts"
        );
    }
    if kept_authority(home)?.is_some() {
        let old = authority_path(home);
        let aside = old.with_extension("json.old");
        std::fs::rename(&old, &aside)
            .with_context(|| format!("cannot move {} away", old.display()))?;
    }
    let made = make_authority(home, cluster)?;
    let (identity, key) = (Identity::required(home)?, NodeKey::make()?);
    let request = CertificateRequest::from_pem(&key.request_pem()?)?;
    let signed = made.sign(&request, identity.id.as_str(), &cluster.id)?;
    let noted = (signed.fingerprint.as_str(), signed.expires_at);
    let pem = made.certificate_pem();
    // In one transaction: never an authority whose own node has no certificate.
    db.run(async |catalog| catalog.replace_authority(pem, &identity.id, noted).await)?;
    crate::failpoint::pass("authority-replaced")?;
    let signed = Signed {
        certificate: signed.pem,
        authority: pem.to_owned(),
    };
    keep_node(home, signed.with(cluster.id.clone(), &key))
}

fn make_authority(home: &Home, cluster: &Cluster) -> Result<Authority> {
    let authority = Authority::make(&cluster.id)?;
    let kept = KeptAuthority {
        certificate: authority.certificate_pem().to_owned(),
        key: authority.key_pem(),
    };
    let text = Zeroizing::new(serde_json::to_vec_pretty(&kept)?);
    write_private(&authority_path(home), &text)?;
    Ok(authority)
}

fn authority_path(home: &Home) -> PathBuf {
    home.dir().join(AUTHORITY)
}

fn kept_authority(home: &Home) -> Result<Option<Authority>> {
    let Some(text) = read(&authority_path(home))? else {
        return Ok(None);
    };
    let kept: KeptAuthority = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not valid", authority_path(home).display()))?;
    Ok(Some(Authority::from_pem(&kept.certificate, &kept.key)?))
}

/// Whether a text is what [`AUTHORITY`] holds.
pub(super) fn is_authority(text: &str) -> bool {
    let kept = serde_json::from_str::<KeptAuthority>(text);
    kept.is_ok_and(|kept| Authority::from_pem(&kept.certificate, &kept.key).is_ok())
}

/// Whether a text is what [`NODE`] holds.
pub(super) fn is_node(text: &str) -> bool {
    let kept = serde_json::from_str::<KeptNode>(text);
    kept.is_ok_and(|kept| {
        Certificate::fingerprint_of(&kept.certificate).is_ok()
            && NodeKey::from_pem(&kept.key).is_ok()
    })
}

/// The authority of the cluster, if its key is on this host.
fn authority(home: &Home, db: &Db) -> Result<Option<Authority>> {
    let ours = db.run(async |catalog| catalog.authority().await)?;
    let kept = kept_authority(home)?;
    Ok(kept.filter(|kept| ours.as_deref() == Some(kept.certificate_pem())))
}

fn required_authority(home: &Home, db: &Db) -> Result<Authority> {
    authority(home, db)?.context(
        "the key of the cluster's authority is not on this host; ask on the node that ran \
         `vmtwin cluster create`, or bring its file cluster-authority.json into the home folder \
         of this one",
    )
}

/// This node's certificate and key, and the id of the cluster that they are for; none if it joined
/// without.
pub(crate) fn credentials(home: &Home) -> Result<Option<(String, Credentials)>> {
    let path = node_path(home);
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    let kept: KeptNode = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not valid", path.display()))?;
    let credentials = Credentials {
        certificate: kept.certificate,
        key: kept.key,
        authority: kept.authority,
    };
    Ok(Some((kept.cluster, credentials)))
}

/// Puts the certificate of another node, whose place this host leaves, aside; never over one that is
/// there.
pub(super) fn put_certificate_aside(home: &Home, of: &NodeName) -> Result<()> {
    let path = node_path(home);
    let Some(text) = read(&path)? else {
        return Ok(());
    };
    let mut aside = path.with_extension(format!("json.of-{of}"));
    for number in 2.. {
        match aside.try_exists()? {
            false => break,
            true => aside = path.with_extension(format!("json.of-{of}.{number}")),
        }
    }
    write_new_private(&aside, &text)?;
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

fn node_path(home: &Home) -> PathBuf {
    home.dir().join(NODE)
}

pub(super) fn keep_node(home: &Home, kept: KeptNode) -> Result<()> {
    let text = Zeroizing::new(serde_json::to_vec_pretty(&kept)?);
    write_private(&node_path(home), &text)
}

fn read(path: &std::path::Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Makes a token that lets one host join.
pub(crate) fn token(home: &Home, args: &TokenArgs) -> Result<ShownToken> {
    let identity = Identity::required(home)?;
    let db = Db::open(home)?;
    let cluster = required_cluster(&db)?;
    let authority = required_authority(home, &db)?;
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    let own = nodes.into_iter().find(|node| node.id == identity.id);
    let known = own.and_then(|node| node.address);
    let address = args.address.clone().or(known).context(
        "where does the agent of this node answer? Run `vmtwin serve` on it first, or give \
         --address HOST:PORT",
    )?;
    let secret = TokenSecret::random()?;
    let expires_at = OffsetDateTime::now_utc() + args.ttl;
    db.run(async |catalog| catalog.add_token(&secret.hash(), expires_at).await)?;
    let token = JoinToken {
        address,
        node: identity.id.to_string(),
        cluster: cluster.id,
        authority: Certificate::fingerprint_of(authority.certificate_pem())?,
        secret,
    };
    Ok(ShownToken {
        token: token.to_text(),
        expires_at,
    })
}

fn required_cluster(db: &Db) -> Result<Cluster> {
    let cluster = db.run(async |catalog| catalog.cluster().await)?;
    Ok(cluster.ok_or(vmtwin_catalog::Error::NoCluster)?)
}

/// Lets a host in that shows a token: the other side of [`join`].
pub(crate) fn admit(home: &Home, db: &Db, asked: &JoinRequest) -> Result<JoinAnswer> {
    let printable = |text: &str| text.len() <= 300 && !text.chars().any(char::is_control);
    if ![&asked.host, &asked.version, &asked.address]
        .into_iter()
        .all(|text| printable(text))
    {
        bail!("the request holds a text that is none of a host's");
    }
    let cluster = required_cluster(db)?;
    let authority = required_authority(home, db)?;
    let database = home.kept_database()?.context(
        "the cluster has no shared database; run on its first node: vmtwin cluster create NAME \
         --database URL",
    )?;
    let request = CertificateRequest::from_pem(&asked.request)?;
    let signed = authority.sign(&request, asked.node.as_str(), &cluster.id)?;
    let node = NewNode {
        id: asked.node.clone(),
        name: asked.name.as_str().to_owned(),
        host: asked.host.clone(),
        version: asked.version.clone(),
        address: Some(asked.address.clone()),
    };
    let (hash, key) = (asked.secret.hash(), request.key_hash());
    let noted = (signed.fingerprint.as_str(), signed.expires_at);
    db.run(async |catalog| catalog.use_token(&hash, &key, &node, noted).await)?;
    Ok(JoinAnswer {
        cluster,
        certificate: signed.pem,
        authority: authority.certificate_pem().to_owned(),
        database: Zeroizing::new(database),
    })
}

/// Makes this host a node by a token. May be repeated with the same one until it is done.
pub(crate) fn join(home: &Home, token: &JoinToken, args: &ClusterJoinArgs) -> Result<Cluster> {
    refuse_to_leave_guests(home, args.force)?;
    let identity = Identity::kept(home, args.node.as_ref())?;
    let pending = home.dir().join("node-pending.key");
    let key = match read(&pending)? {
        Some(pem) => NodeKey::from_pem(std::str::from_utf8(&pem)?)?,
        None => NodeKey::make()?,
    };
    write_private(&pending, key.to_pem().as_bytes())?;
    let asked = JoinRequest {
        secret: token.secret.clone(),
        request: key.request_pem()?,
        node: identity.id.clone(),
        name: identity.name.clone(),
        host: host_name()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: match &args.advertise {
            Some(address) => address.clone(),
            None => format!(
                "{}:{DEFAULT_PORT}",
                bracketed(&local_address(&token.address)?)
            ),
        },
    };
    let answer = ask_to_join(token, &asked)?;
    if Certificate::fingerprint_of(&answer.authority)? != token.authority
        || answer.cluster.id != token.cluster
    {
        bail!("the agent answers for another cluster than the token's; nothing was changed");
    }
    identity.keep(home)?;
    let signed = Signed {
        certificate: answer.certificate,
        authority: answer.authority,
    };
    keep_node(home, signed.with(answer.cluster.id.clone(), &key))?;
    crate::command::catalog::database_url(&answer.database).map_err(anyhow::Error::msg)?;
    home.keep_database(Some(&answer.database))?;
    std::fs::remove_file(&pending).context("cannot remove the key of the finished join")?;
    Db::open_database(home, &answer.database)
        .context("this host is a node now, but it cannot use the cluster's database")?;
    Ok(answer.cluster)
}

fn ask_to_join(token: &JoinToken, asked: &JoinRequest) -> Result<JoinAnswer> {
    let client = Client::pinned(&token.authority, &token.cluster)?;
    let document = serde_json::to_vec(asked)?;
    let runtime = super::ask::runtime()?;
    let answer = runtime.block_on(async {
        let answer = client
            .post_json(&token.address, &token.node, "/v1/cluster/join", document)
            .await?;
        answer.bytes(MAX_ANSWER_BYTES).await
    });
    let answer = Zeroizing::new(answer.context("the agent that issued the token let us not in")?);
    serde_json::from_slice(&answer).context("the agent's answer cannot be read")
}

/// The address of this host that others reach it by, as seen on the way to `towards`.
pub(super) fn local_address(towards: &str) -> Result<String> {
    let to: SocketAddr = towards
        .to_socket_addrs()
        .with_context(|| format!("{towards} is no address"))?
        .next()
        .with_context(|| format!("{towards} is no address"))?;
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    // Nothing is sent: the system only chooses a route.
    let socket = UdpSocket::bind(any)?;
    socket
        .connect(to)
        .with_context(|| format!("there is no way to {towards}"))?;
    Ok(socket.local_addr()?.ip().to_string())
}

/// An address as it stands before a port.
pub(super) fn bracketed(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

/// Removes a node of the cluster: its certificates count no more. Also how many of its jobs were ended.
pub(crate) fn remove(home: &Home, name: &NodeName) -> Result<(NodeId, u64)> {
    let db = Db::open(home)?;
    required_cluster(&db)?;
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    let found = nodes.into_iter().find(|node| node.name == name.as_str());
    let id = found
        .with_context(|| format!("the cluster has no node {name}; see: vmtwin cluster nodes"))?
        .id;
    if Identity::of(home)?.is_some_and(|own| own.id == id) {
        bail!("{name} is this node; remove it from another one");
    }
    let ended = db.run(async |catalog| catalog.remove_node(&id).await)?;
    Ok((id, ended))
}
