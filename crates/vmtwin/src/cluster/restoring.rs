//! The restore of this node as another one asks for it.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/node/restore/plan` | what would be done; nothing is changed |
//! | `POST /v1/node/restore/ID` | begins it, once for an ID, if the plan is still the one agreed to |
//! | `GET /v1/node/restore/ID` | how far it is, and in the end its outcome |
//!
//! Who asks must be named in this node's own list (`permission.rs`), and its certificate must be made
//! for that node by the authority: the shared database alone, which all nodes can write, lets nobody
//! do this. What was begun goes on when the asker goes away; outcomes are kept in
//! `HOME/cluster/restores/ID.json`, the latest ones.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use tokio::sync::Mutex;
use vmtwin_catalog::NodeId;
use vmtwin_cluster::NodeDocument;
use vmtwin_server::{PeerName, Problem};

use super::agent::{Agent, Asking, Shared, blocking};
use super::apply::host::{self, Prepared};
use super::apply::wire::{
    MAX_ORDER_BYTES, Order, Planned, State as Progress, Status, digest, outline,
};
use super::apply::{Outcome, steps};
use super::permission;
use crate::home::{Home, write_private};

/// How long an order may take to come, all of it.
const ORDER_LIMIT: Duration = Duration::from_secs(120);
/// How long what was begun may go on once the agent is to end: it ends between two steps.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// Outcomes that are kept.
const KEPT: usize = 32;

/// Restores of this node.
#[derive(Default)]
pub(super) struct Restores {
    /// Held while an order is read and looked at: one at a time, they are large.
    reading: Mutex<()>,
    /// The one that is being done.
    current: std::sync::Mutex<Option<Status>>,
}

impl Restores {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<Status>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of what is being done.
    pub(super) async fn settle(&self) {
        let begun = Instant::now();
        while self.current().is_some() && begun.elapsed() < SETTLE_LIMIT {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What is known of a restore.
    fn status(&self, home: &Home, id: &NodeId) -> Result<Option<Status>> {
        if let Some(current) = &*self.current()
            && current.id == id.as_str()
        {
            return Ok(Some(current.clone()));
        }
        let Some(mut kept) = kept(home, id)? else {
            return Ok(None);
        };
        if kept.state == Progress::Running {
            kept.state = Progress::Interrupted;
        }
        Ok(Some(kept))
    }
}

/// Requests of nodes that may restore this one.
pub(super) fn routes(agent: &Shared) -> Router<Shared> {
    Router::new()
        .route("/v1/node/restore/plan", post(plan))
        .route("/v1/node/restore/{id}", post(begin).get(status))
        .layer(DefaultBodyLimit::max(MAX_ORDER_BYTES))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(agent),
            require_permission,
        ))
}

pub(super) async fn require_permission(
    State(agent): State<Shared>,
    Extension(Asking(node)): Extension<Asking>,
    Extension(name): Extension<PeerName>,
    request: Request,
    next: Next,
) -> Response {
    let may = match permission::allows(&agent.home, &node) {
        Ok(may) => may && name.is_node(node.as_str(), &agent.cluster),
        Err(error) => return failed(&error).into_response(),
    };
    if may {
        return next.run(request).await;
    }
    let asker = named(&agent, &node).await;
    tracing::warn!(%asker, "a node asked for this one's restore or secrets, and may not");
    let own = &agent.identity.name;
    let why = format!(
        "{own} does not let {asker} restore it, or have its secrets; if it shall, run on {own}: vmtwin \
         cluster node allow-restore {asker}"
    );
    Problem::new(StatusCode::FORBIDDEN, why).into_response()
}

/// The name of a node, or its id.
async fn named(agent: &Shared, node: &NodeId) -> String {
    let id = node.clone();
    let nodes = blocking(agent, |agent| {
        Ok(agent.db.run(async |catalog| catalog.nodes().await)?)
    });
    let nodes = nodes.await.unwrap_or_default();
    let found = nodes.into_iter().find(|node| node.id == id);
    found.map_or_else(|| node.to_string(), |node| node.name)
}

fn failed(error: &anyhow::Error) -> Problem {
    tracing::error!("{error:#}");
    // What is wrong with this host stays wrong until somebody mends it: no reason to try again.
    Problem::new(StatusCode::CONFLICT, format!("{error:#}"))
}

/// What an order asks for.
struct Wanted {
    order: Order,
    document: NodeDocument,
}

/// Reads an order. Its document is of this node, unless this one takes another's place.
async fn read(agent: &Agent, request: Request) -> Result<Wanted, Problem> {
    let body = tokio::time::timeout(ORDER_LIMIT, Bytes::from_request(request, &())).await;
    let too_slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the order came too slowly");
    let body = body.map_err(too_slow)?;
    let too_long = |_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the order is too long");
    let body = body.map_err(too_long)?;
    let own = agent.identity.clone();
    let read = tokio::task::spawn_blocking(move || {
        let wrong = |why: String| Problem::new(StatusCode::BAD_REQUEST, why);
        let order: Order = serde_json::from_slice(&body)
            .map_err(|error| wrong(format!("this is no order to restore a node: {error}")))?;
        let document = NodeDocument::from_xml(&order.document)
            .map_err(|error| wrong(format!("the node's document cannot be used: {error}")))?;
        if document.id != own.id.as_str() && !order.options.to_new_hardware {
            let why = format!(
                "the document is of {}, and this is {}",
                document.name, own.name
            );
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
        if order
            .secrets
            .as_ref()
            .is_some_and(|it| it.secrets.node != document.id)
        {
            return Err(wrong(
                "the secrets are not those of the document's node".to_owned(),
            ));
        }
        Ok(Wanted { order, document })
    });
    read.await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
}

async fn prepare(agent: &Shared, wanted: Wanted) -> Result<(Prepared, Order), Problem> {
    let prepared = blocking(agent, move |agent| {
        let Wanted {
            mut order,
            document,
        } = wanted;
        let node = (&document, order.secrets.take());
        let prepared = host::prepare((&agent.home, &agent.db), node, false, &order.options)?;
        Ok((prepared, order))
    });
    prepared.await.map_err(|error| failed(&error))
}

async fn plan(State(agent): State<Shared>, request: Request) -> Result<Json<Planned>, Problem> {
    let _one = agent.restores.reading.lock().await;
    let wanted = read(&agent, request).await?;
    let (prepared, _) = prepare(&agent, wanted).await?;
    let digest = digest(&prepared.plan).map_err(|error| failed(&error.into()))?;
    Ok(Json(Planned {
        plan: outline(prepared.plan),
        digest,
    }))
}

async fn status(
    State(agent): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Status>, Problem> {
    let found = known(&agent, &restore_id(&id)?)?;
    let none = || Problem::new(StatusCode::NOT_FOUND, "nothing is known of this restore");
    found.map(Json).ok_or_else(none)
}

fn restore_id(text: &str) -> Result<NodeId, Problem> {
    let wrong = |_| Problem::new(StatusCode::BAD_REQUEST, "this is no id of a restore");
    text.parse().map_err(wrong)
}

fn known(agent: &Agent, id: &NodeId) -> Result<Option<Status>, Problem> {
    let status = agent.restores.status(&agent.home, id);
    status.map_err(|error| failed(&error))
}

async fn begin(
    State(agent): State<Shared>,
    Path(id): Path<String>,
    Extension(Asking(node)): Extension<Asking>,
    request: Request,
) -> Result<Json<Status>, Problem> {
    let id = restore_id(&id)?;
    // In a task of its own: who goes away does not leave it half begun.
    let begun = tokio::spawn(async move {
        let _one = agent.restores.reading.lock().await;
        begin_once(&agent, &id, &node, request).await
    });
    let lost = |error: tokio::task::JoinError| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    };
    begun.await.map_err(lost)?.map(Json)
}

async fn begin_once(
    agent: &Shared,
    id: &NodeId,
    asker: &NodeId,
    request: Request,
) -> Result<Status, Problem> {
    // Asked again, since the answer was lost.
    if let Some(status) = known(agent, id)? {
        return Ok(status);
    }
    if agent.restores.current().is_some() {
        let why =
            "another restore of this node is being done; run the same again when it has ended";
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let wanted = read(agent, request).await?;
    let (prepared, order) = prepare(agent, wanted).await?;
    let now = digest(&prepared.plan).map_err(|error| failed(&error.into()))?;
    if order.agreed.as_deref() != Some(&now) {
        let why = "the node has changed since its plan was shown: nothing was changed; look at the \
                   plan again";
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let asker = named(agent, asker).await;
    tracing::warn!(%asker, %id, "this node is being restored");
    let status = Status {
        id: id.to_string(),
        state: Progress::Running,
        done: 0,
        total: steps::count(&prepared.plan),
        what: String::new(),
        outcome: None,
        error: None,
    };
    keep(&agent.home, &status).map_err(|error| failed(&error))?;
    *agent.restores.current() = Some(status.clone());
    let agent = Arc::clone(agent);
    tokio::task::spawn_blocking(move || run(&agent, &prepared, order.options.force, &asker));
    Ok(status)
}

/// Does it to its end, and keeps what came of it.
fn run(agent: &Agent, prepared: &Prepared, force: bool, asker: &str) {
    let mut outcome = Outcome::before(&prepared.plan);
    let done = apply(agent, prepared, force, &mut outcome);
    let Some(mut status) = agent.restores.current().clone() else {
        return;
    };
    status.state = Progress::Ended;
    status.done = status.total;
    status.error = done.err().map(|error| format!("{error:#}"));
    let failed = status.error.is_some() || outcome.not_deployed.iter().any(|one| one.failed);
    tracing::warn!(id = status.id, failed, "the restore of this node has ended");
    let detail = format!("{}: {} deployed", status.id, outcome.deployed.len());
    status.outcome = Some(outcome);
    if let Err(error) = keep(&agent.home, &status) {
        tracing::error!("{error:#}");
    }
    // Kept first: who asks in between finds it.
    *agent.restores.current() = None;
    let (who, result) = (
        format!("node {asker}"),
        if failed { "failed" } else { "done" },
    );
    let noted = agent.db.run(async |catalog| {
        let action = "restore of a node";
        catalog
            .note_audit(&who, "cluster", action, &detail, result)
            .await
    });
    if let Err(error) = noted {
        tracing::warn!("the audit does not tell of it: {error}");
    }
}

fn apply(agent: &Agent, prepared: &Prepared, force: bool, outcome: &mut Outcome) -> Result<()> {
    let kept = host::keep_live(&agent.home, &prepared.live);
    outcome.safety_backup = Some(kept.context("what is there now cannot be kept")?);
    let progress = |done: usize, what: &str| {
        if let Some(status) = &mut *agent.restores.current() {
            (status.done, status.what) = (done, what.to_owned());
        }
    };
    host::keep_secrets(&agent.home, prepared).context("the secrets here cannot be kept")?;
    steps::apply(&agent.home, prepared, force, &progress, outcome)
}

fn folder(home: &Home) -> Result<PathBuf> {
    let folder = home.cluster_dir()?.join("restores");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

fn kept(home: &Home, id: &NodeId) -> Result<Option<Status>> {
    let path = folder(home)?.join(format!("{id}.json"));
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{} is not valid", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Keeps how far a restore is; the oldest ones are forgotten.
fn keep(home: &Home, status: &Status) -> Result<()> {
    let folder = folder(home)?;
    let file = folder.join(format!("{}.json", status.id));
    write_private(&file, &serde_json::to_vec(status)?)?;
    let mut all: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(&folder)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    let old = all.len().saturating_sub(KEPT);
    for (_, path) in all.into_iter().take(old) {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
