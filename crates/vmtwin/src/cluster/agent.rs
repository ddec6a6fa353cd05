//! The agent of a node: what `vmtwin serve` answers other nodes.
//!
//! | request | who may | answer |
//! |---|---|---|
//! | `GET /healthz`, `GET /readyz` | anybody | whether it runs; whether it has its database |
//! | `POST /v1/cluster/join` | who has a token | a certificate and the database's URL |
//! | `GET /v1/node` | nodes | name, version, guests |
//! | `GET /v1/node/config` | nodes | the node's configuration as it is now, XML |
//! | `POST /v1/cluster/renew` | nodes, for themselves | a new certificate: `renewal.rs` |
//! | `POST /v1/node/secrets` | nodes that this one allows | its secrets, sealed for keys in the request: `secrets/serve.rs` |
//! | `POST /v1/node/restore/…` | the same | `restoring.rs` |
//!
//! A node is who shows a certificate of the authority that the catalog knows, and that was not
//! taken back; it is looked up for each request, and without the database nobody is let in. A
//! node answers for itself alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use vmtwin_catalog::{CertificateState, NodeId};
use vmtwin_server::{Credentials, Limits, Listener, PeerCertificate, Problem};

use super::membership::{self, JoinRequest};
use super::node::{Identity, collect};
use super::presence::Presence;
use super::renewal;
use super::restoring::{self, Restores};
use super::secrets;
use crate::cancel::Cancel;
use crate::cli::ServeArgs;
use crate::db::Db;
use crate::home::Home;
use crate::ui::Ui;

/// How often it looks whether it has a new certificate.
const FILE_LOOK: Duration = Duration::from_secs(5);
/// How long libvirt may take to count guests.
const COUNT_LIMIT: Duration = Duration::from_secs(2);
/// How long a host that wants to join may take to say so: it is a stranger until then.
const JOIN_LIMIT: Duration = Duration::from_secs(15);
/// Field of an answer that tells what is not in it.
pub(super) const WARNINGS: HeaderName = HeaderName::from_static("vmtwin-warnings");
/// Longest text of that field, bytes.
const MAX_WARNINGS_BYTES: usize = 2048;

/// What a node says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// Guests that libvirt knows, if it runs.
    pub(crate) guests: Option<u64>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) started_at: OffsetDateTime,
}

/// A configuration, and when it was there.
#[derive(Clone)]
struct Collected {
    done: Instant,
    xml: Bytes,
    warnings: Vec<String>,
}

/// What libvirt defines could not be seen: the node gives nothing, and its last known configuration counts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unseen(String);

pub(super) struct Agent {
    pub(super) home: Home,
    pub(super) db: Db,
    pub(super) identity: Identity,
    /// The id of the cluster that its certificate is for.
    pub(super) cluster: String,
    started_at: OffsetDateTime,
    /// Held while a configuration is being taken: one at a time.
    collected: Mutex<Option<Collected>>,
    pub(super) restores: Restores,
}

pub(super) type Shared = Arc<Agent>;

/// The node that asks, by its certificate.
#[derive(Debug, Clone)]
pub(super) struct Asking(pub(super) NodeId);

/// Whether this host has an agent: it was let into a cluster with a certificate.
pub(crate) fn is_wanted(home: &Home) -> Result<bool> {
    Ok(membership::credentials(home)?.is_some())
}

/// Runs the agent until a signal ends it. `begun` is set when it answers.
pub(crate) fn serve(
    home: &Home,
    ui: &Ui,
    cancel: &Cancel,
    args: &ServeArgs,
    begun: &AtomicBool,
) -> Result<()> {
    let identity = Identity::required(home)?;
    let (cluster, credentials) = membership::credentials(home)?.context(
        "this node has no certificate; run: vmtwin cluster join TOKEN (on the first node: vmtwin \
         cluster create NAME)",
    )?;
    let agent = Arc::new(Agent {
        home: home.clone(),
        db: Db::open(home)?,
        identity,
        started_at: OffsetDateTime::now_utc(),
        collected: Mutex::new(None),
        cluster,
        restores: Restores::default(),
    });
    let runtime = super::ask::runtime()?;
    let served = runtime.block_on(async {
        let served = serve_on(&agent, ui, cancel, args, credentials, begun).await;
        agent.restores.settle().await;
        served
    });
    // A collection may still run; nobody waits for it any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Serves until the end; with a new certificate on the same address.
async fn serve_on(
    agent: &Shared,
    ui: &Ui,
    cancel: &Cancel,
    args: &ServeArgs,
    mut credentials: Credentials,
    begun: &AtomicBool,
) -> Result<()> {
    let mut listener = Listener::bind(args.agent_listen, &credentials, Limits::default()).await?;
    let listen = listener.address().unwrap_or(args.agent_listen);
    let address = advertised(agent, args, listen)?;
    let mut presence = Presence::begin(agent, &address).await?;
    loop {
        ui.note(&format!(
            "{}: the agent answers at {address}",
            agent.identity.name
        ));
        begun.store(true, Ordering::Relaxed);
        let mut renewed = None;
        let end = async {
            tokio::select! {
                () = until_cancelled(cancel) => {}
                () = presence.keep() => {}
                () = renewal::look_after(agent) => {}
                new = until_renewed(agent, &credentials) => renewed = Some(new),
            }
        };
        listener.serve(router(agent), end).await;
        let Some(new) = renewed else {
            return Ok(());
        };
        credentials = new;
        listener = Listener::bind(listen, &credentials, Limits::default()).await?;
    }
}

/// Until this node's certificate is another one than it was, by whomever.
async fn until_renewed(agent: &Shared, old: &Credentials) -> Credentials {
    loop {
        tokio::time::sleep(FILE_LOOK).await;
        let kept = blocking(agent, |agent| membership::credentials(&agent.home)).await;
        if let Ok(Some((cluster, new))) = kept
            && cluster == agent.cluster
            && new.certificate != old.certificate
        {
            return new;
        }
    }
}

/// Where others reach the agent.
fn advertised(agent: &Agent, args: &ServeArgs, bound: SocketAddr) -> Result<String> {
    if let Some(address) = &args.advertise {
        return Ok(address.clone());
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound.to_string());
    }
    let id = &agent.identity.id;
    let kept = tokio::task::block_in_place(|| {
        let nodes = agent.db.run(async |catalog| catalog.nodes().await)?;
        let own = nodes.into_iter().find(|node| node.id == *id);
        anyhow::Ok(own.and_then(|node| node.address))
    })?;
    let host = match kept.as_deref().and_then(|kept| kept.rsplit_once(':')) {
        Some((host, _)) => host.to_owned(),
        // An address of documentation, RFC 5737: only the way there is asked for.
        None => membership::bracketed(&membership::local_address("192.0.2.1:9").context(
            "by which address do others reach this node? Give it with --advertise HOST:PORT",
        )?),
    };
    Ok(format!("{host}:{}", bound.port()))
}

/// Until somebody asks for the end.
pub(crate) async fn until_cancelled(cancel: &Cancel) {
    while !cancel.is_set() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Does what waits on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    agent: &Shared,
    work: impl FnOnce(&Agent) -> Result<T> + Send + 'static,
) -> Result<T> {
    let agent = Arc::clone(agent);
    tokio::task::spawn_blocking(move || work(&agent)).await?
}

fn router(agent: &Shared) -> Router {
    let nodes = Router::new()
        .route("/v1/node", get(status))
        .route("/v1/node/config", get(config))
        .route("/v1/cluster/renew", post(renewal::serve))
        .merge(restoring::routes(agent))
        .merge(secrets::routes(agent))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(agent),
            require_node,
        ));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/v1/cluster/join", post(join))
        .merge(nodes)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing of this name"))
        .with_state(Arc::clone(agent))
}

async fn require_node(
    State(agent): State<Shared>,
    Extension(peer): Extension<PeerCertificate>,
    mut request: Request,
    next: Next,
) -> Response {
    let refused = |status, why: &str| Problem::new(status, why).into_response();
    let Some(fingerprint) = peer.0 else {
        return refused(StatusCode::UNAUTHORIZED, "a node's certificate is needed");
    };
    let state = blocking(&agent, move |agent| {
        Ok(agent
            .db
            .run(async |catalog| catalog.certificate(&fingerprint).await)?)
    });
    match state.await {
        Ok(CertificateState::Valid(node)) => {
            request.extensions_mut().insert(Asking(node));
            next.run(request).await
        }
        Ok(CertificateState::Revoked | CertificateState::Unknown) => refused(
            StatusCode::FORBIDDEN,
            "this certificate does not count in the cluster (any more)",
        ),
        Err(error) => no_database(&error).into_response(),
    }
}

pub(super) fn no_database(error: &anyhow::Error) -> Problem {
    tracing::error!("{error:#}");
    let detail = "this node cannot use the cluster's database; its log says more";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

async fn ready(State(agent): State<Shared>) -> Result<&'static str, Problem> {
    let cluster = blocking(&agent, |agent| {
        Ok(agent.db.run(async |catalog| catalog.cluster().await)?)
    });
    cluster.await.map_err(|error| no_database(&error))?;
    Ok("ready\n")
}

async fn join(State(agent): State<Shared>, request: Request) -> Result<Response, Problem> {
    let body = tokio::time::timeout(JOIN_LIMIT, Bytes::from_request(request, &())).await;
    let too_slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the request came too slowly");
    let body = body.map_err(too_slow)?;
    let too_long = |_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long");
    let body = body.map_err(too_long)?;
    let asked: JoinRequest = serde_json::from_slice(&body)
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "this is no request to join"))?;
    let name = asked.name().clone();
    let admitted = blocking(&agent, move |agent| {
        membership::admit(&agent.home, &agent.db, &asked)
    });
    match admitted.await {
        Ok(answer) => {
            tracing::warn!(%name, "a node has joined");
            Ok(Json(answer).into_response())
        }
        Err(error) => {
            tracing::warn!(%name, "a host was not let in: {error:#}");
            Err(refusal(&error))
        }
    }
}

/// What a host is told that was not let in.
fn refusal(error: &anyhow::Error) -> Problem {
    use vmtwin_catalog::Error;
    let status = match error.downcast_ref::<Error>() {
        Some(Error::Token) => StatusCode::FORBIDDEN,
        Some(Error::NodeExists { .. } | Error::NodeHasCertificate { .. }) => StatusCode::CONFLICT,
        Some(_) => return no_database(error),
        None => StatusCode::BAD_REQUEST,
    };
    Problem::new(status, error.to_string())
}

async fn status(State(agent): State<Shared>) -> Json<NodeStatus> {
    let counting = tokio::task::spawn_blocking(super::libvirt::count_guests);
    let guests = tokio::time::timeout(COUNT_LIMIT, counting).await;
    let guests = guests.ok().and_then(|counted| counted.ok()).flatten();
    Json(NodeStatus {
        id: agent.identity.id.to_string(),
        name: agent.identity.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        guests: guests.map(|guests| guests as u64),
        started_at: agent.started_at,
    })
}

async fn config(State(agent): State<Shared>) -> Result<Response, Problem> {
    // In a task of its own: who goes away does not let a second collection begin beside it.
    let taken = tokio::spawn(shared_config(agent, Instant::now())).await;
    let failed = |error: anyhow::Error| {
        tracing::error!("{error:#}");
        let detail = format!("the configuration cannot be taken: {error:#}");
        // To ask again would help with all but what this node cannot see.
        let status = match error.is::<Unseen>() {
            true => StatusCode::CONFLICT,
            false => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, detail)
    };
    let taken = match taken {
        Ok(taken) => taken.map_err(failed)?,
        Err(error) => return Err(failed(error.into())),
    };
    let mut response = taken.xml.into_response();
    let head = response.headers_mut();
    let kind = HeaderValue::from_static("application/xml");
    head.insert(header::CONTENT_TYPE, kind);
    if let Some(warnings) = one_line(&taken.warnings) {
        head.insert(WARNINGS, warnings);
    }
    Ok(response)
}

/// The configuration as it was at `since` or later. Who asks while it is being taken gets the same.
async fn shared_config(agent: Shared, since: Instant) -> Result<Collected> {
    let mut last = agent.collected.lock().await;
    if let Some(last) = &*last
        && last.done >= since
    {
        return Ok(last.clone());
    }
    let taken = blocking(&agent, |agent| {
        crate::failpoint::pass("agent-collect")?;
        let collection = collect(&agent.home, &agent.db, false)?;
        if let Some(why) = collection.unseen {
            return Err(Unseen(why).into());
        }
        Ok(Collected {
            xml: collection.document.to_xml()?.into(),
            done: Instant::now(),
            warnings: collection.warnings,
        })
    });
    let taken = taken.await?;
    *last = Some(taken.clone());
    Ok(taken)
}

/// Warnings as the value of a field: letters of ASCII, one line, not too long.
fn one_line(warnings: &[String]) -> Option<HeaderValue> {
    if warnings.is_empty() {
        return None;
    }
    let plain = |c: char| match c {
        ' '..='~' => c,
        _ => '?',
    };
    let text: String = warnings.join("; ").chars().map(plain).collect();
    HeaderValue::from_str(&text[..text.len().min(MAX_WARNINGS_BYTES)]).ok()
}
