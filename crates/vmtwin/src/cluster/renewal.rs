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
use vmtwin_catalog::{Node, NodeId};
use vmtwin_server::{
    Certificate, CertificateRequest, Client, Credentials, NodeKey, PeerName, Problem,
};

use super::agent::{Asking, Shared, blocking, no_database};
use super::ask;
use super::membership::{self, DOES_NOT_COUNT, KeptNode, Signed, counts_until};
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
    let signed = match membership::sign(home, &db, &identity.id, &request)? {
        Some(signed) => signed,
        None if ends_at.is_none() => bail!(DOES_NOT_COUNT),
        None => Signed {
            certificate: ask_others(home, &db, &identity.id, (&cluster, &old), &request)?,
            authority: old.authority,
        },
    };
    let new = Credentials {
        certificate: signed.certificate,
        key: key.to_pem(),
        authority: signed.authority,
    };
    // Neither of another key, nor one that was not noted.
    Client::new(&new, &cluster).context("the new certificate cannot be used")?;
    let ends_at = counts_until(&db, &new)?.context("the new certificate does not count")?;
    membership::keep_node(
        home,
        KeptNode {
            cluster,
            authority: new.authority,
            certificate: new.certificate,
            key: new.key,
        },
    )?;
    Ok(Renewal {
        renewed: true,
        ends_at,
    })
}

/// Asks one node after the other: who has the authority's key is not written down anywhere.
fn ask_others(
    home: &Home,
    db: &Db,
    own: &NodeId,
    (cluster, credentials): (&str, &Credentials),
    request: &str,
) -> Result<String> {
    let client = Client::new(credentials, cluster)?;
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    let cancel = home.cancel();
    let runtime = ask::runtime()?;
    let mut why = Vec::new();
    for node in nodes.iter().filter(|node| node.id != *own) {
        if cancel.is_set() {
            bail!("stopped by a signal");
        }
        match runtime.block_on(ask_one(&client, node, request)) {
            Ok(certificate) => return Ok(certificate),
            Err(error) => why.push(format!("{}: {error:#}", node.name)),
        }
    }
    bail!(
        "no node could renew this one's certificate; the one that has the authority's key must run \
         `vmtwin serve` ({})",
        why.join("; ")
    )
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
    Certificate::fingerprint_of(&answer.certificate)?;
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
