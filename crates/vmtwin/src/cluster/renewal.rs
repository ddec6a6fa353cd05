//! Certificates of nodes are renewed long before they end, by the agents themselves.
//!
//! ```text
//!   this node: new key ─► request ─► POST /v1/cluster/renew, on the node that has the authority's key
//!   node-tls.json ◄─ certificate ◄─ signed, for the node that asks and no other; noted in the catalog
//! ```
//! The old certificate counts until its end, so an answer that is lost costs nothing but another try. The
//! agent takes up a new file while it runs, whoever wrote it.

use std::time::Duration as StdDuration;

use anyhow::{Context, Result, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{CertificateState, Node, NodeId};
use vmtwin_server::{CertificateRequest, Client, Credentials, NodeKey, PeerName, Problem};

use super::agent::{Asking, Shared, blocking, no_database};
use super::ask;
use super::membership::{self, DOES_NOT_COUNT, KeptNode, counts_until};
use super::node::Identity;
use crate::db::Db;
use crate::home::Home;

/// How long before its end a certificate is renewed: the node with the authority may be away for long.
const BEFORE: Duration = Duration::days(365);
/// How often an agent looks at its own.
const EVERY: StdDuration = StdDuration::from_secs(24 * 3600);
/// How often it tries again what failed.
const AGAIN: StdDuration = StdDuration::from_secs(3600);
const PATH: &str = "/v1/cluster/renew";
/// Most of an answer, bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// How long a node may take to answer.
const ANSWER_LIMIT: StdDuration = StdDuration::from_secs(15);

/// What a node asks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewRequest {
    /// PKCS #10, PEM.
    request: String,
}

/// What it gets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RenewAnswer {
    certificate: String,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Renewal {
    pub(crate) renewed: bool,
    /// When the certificate ends.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) ends_at: OffsetDateTime,
}

/// Renews this node's certificate if it is time or does not count, or if that is asked for.
pub(crate) fn renew(home: &Home, force: bool) -> Result<Renewal> {
    let identity = Identity::required(home)?;
    let (cluster, old) = membership::credentials(home)?
        .context("this node has no certificate; run: vmtwin cluster join TOKEN")?;
    let db = Db::open(home)?;
    let ends_at = counts_until(&db, &old)?;
    if let Some(ends_at) = ends_at
        && !force
        && ends_at - OffsetDateTime::now_utc() > BEFORE
    {
        return Ok(Renewal {
            renewed: false,
            ends_at,
        });
    }
    let key = NodeKey::make()?;
    let request = key.request_pem()?;
    // Where the authority's key is, nobody else is needed, whatever the old certificate is worth.
    let new = match membership::sign(home, &db, &identity.id, &request)? {
        Some(signed) => Credentials {
            certificate: signed.certificate,
            key: key.to_pem(),
            authority: signed.authority,
        },
        None if ends_at.is_none() => bail!(DOES_NOT_COUNT),
        None => {
            let asker = Asker {
                home,
                db: &db,
                own: &identity.id,
                cluster: &cluster,
                old: &old,
            };
            asker.ask_others(&key)?
        }
    };
    let ends_at = counts_until(&db, &new)?.context("the new certificate does not count")?;
    let kept = KeptNode {
        cluster,
        authority: new.authority,
        certificate: new.certificate,
        key: new.key,
    };
    membership::keep_node(home, kept)?;
    Ok(Renewal {
        renewed: true,
        ends_at,
    })
}

/// A node that asks for a certificate.
struct Asker<'a> {
    home: &'a Home,
    db: &'a Db,
    own: &'a NodeId,
    cluster: &'a str,
    old: &'a Credentials,
}

impl Asker<'_> {
    /// Asks one node after the other: who has the authority's key is not written down anywhere. What is no
    /// good, by whomever, is passed over.
    fn ask_others(&self, key: &NodeKey) -> Result<Credentials> {
        let client = ask::client_of(self.home, self.old, self.cluster)?;
        let request = key.request_pem()?;
        let nodes = self.db.run(async |catalog| catalog.nodes().await)?;
        let cancel = self.home.cancel();
        let runtime = ask::runtime()?;
        let mut why = Vec::new();
        for node in nodes.iter().filter(|node| node.id != *self.own) {
            if cancel.is_set() {
                bail!("stopped by a signal");
            }
            let given = runtime.block_on(ask_one(&client, node, &request));
            match given.and_then(|given| self.accept(given, key)) {
                Ok(new) => return Ok(new),
                Err(error) => why.push(format!("{}: {error:#}", node.name)),
            }
        }
        bail!(
            "no node could renew this one's certificate; the one that has the authority's key must run \
             `vmtwin serve` ({})",
            why.join("; ")
        )
    }

    /// Who answers may be any node, and one that was broken into too: the certificate is to be of the
    /// authority that this node trusts already, for this node and its new key, and noted as such.
    fn accept(&self, certificate: String, key: &NodeKey) -> Result<Credentials> {
        let new = Credentials {
            certificate,
            key: key.to_pem(),
            authority: self.old.authority.clone(),
        };
        new.check(self.own.as_str(), self.cluster)
            .context("its answer was not taken")?;
        let fingerprint = new.fingerprint()?;
        let noted = self
            .db
            .run(async |catalog| catalog.certificate(&fingerprint).await)?;
        if noted != CertificateState::Valid(self.own.clone()) {
            bail!("its answer was not taken: the catalog has no such certificate of this node");
        }
        Ok(new)
    }
}

async fn ask_one(client: &Client, node: &Node, request: &str) -> Result<String> {
    let address = node.address.as_deref().context("it has no agent")?;
    let asked = serde_json::to_vec(&RenewRequest {
        request: request.to_owned(),
    })?;
    let answered = async {
        let answer = client.post_json(address, node.id.as_str(), PATH, asked);
        answer.await?.bytes(MAX_ANSWER_BYTES).await
    };
    let late = |_| anyhow::anyhow!("no answer within {} s", ANSWER_LIMIT.as_secs());
    let text = tokio::time::timeout(ANSWER_LIMIT, answered)
        .await
        .map_err(late)??;
    let answer: RenewAnswer = serde_json::from_slice(&text).context("its answer cannot be read")?;
    Ok(answer.certificate)
}

/// Signs a certificate for the node that asks, where the authority's key is here.
pub(super) async fn serve(
    State(agent): State<Shared>,
    Extension(Asking(node)): Extension<Asking>,
    Extension(name): Extension<PeerName>,
    Json(asked): Json<RenewRequest>,
) -> Result<Json<RenewAnswer>, Problem> {
    // The database, which every node can write, names nobody.
    if !name.is_node(node.as_str(), &agent.cluster) {
        let why = "the certificate is not made for this node";
        return Err(Problem::new(StatusCode::FORBIDDEN, why));
    }
    CertificateRequest::from_pem(&asked.request)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let of = node.clone();
    let signed = blocking(&agent, move |agent| {
        membership::sign(&agent.home, &agent.db, &of, &asked.request)
    });
    match signed.await {
        Ok(Some(signed)) => {
            tracing::warn!(%node, "a node's certificate is renewed");
            let certificate = signed.certificate;
            Ok(Json(RenewAnswer { certificate }))
        }
        Ok(None) => {
            let why = "the authority's key is not on this node";
            Err(Problem::new(StatusCode::CONFLICT, why))
        }
        Err(error) => Err(no_database(&error)),
    }
}

/// Keeps this node's certificate from ending, as long as the agent runs.
pub(super) async fn look_after(agent: &Shared) {
    loop {
        let renewed = blocking(agent, |agent| renew(&agent.home, false)).await;
        let pause = match renewed {
            Ok(_) => EVERY,
            Err(error) => {
                tracing::warn!("this node's certificate was not looked after: {error:#}");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}
