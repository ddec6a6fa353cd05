//! The HTTP API of `vmtwin serve`, for pages, programs and other people's vmtwin.
//!
//! | file | holds |
//! |---|---|
//! | `access.rs` | who asks: tokens, sessions, scopes, limits for guessers |
//! | `commands.rs` | commands as JSON: what the command line takes, as bodies and schemas |
//! | `gate.rs` | which command needs which scope, and what of it nobody may ask for from afar |
//! | `jobs.rs` | commands as jobs: started, listed, watched, cancelled |
//! | `protection.rs` | is every guest protected? |
//! | `views.rs`, `model.rs` | what is looked at, and its shapes |
//! | `download.rs` | files out of snapshots |
//! | `pages.rs` | the web pages |
//! | `openapi.rs` | the document that describes all this |
//!
//! What changes something is a command of the command line, run as a [`crate::task`]: nothing can be
//! done here that cannot be done there, and it is undone, locked and journaled by the same code.

mod access;
mod commands;
mod download;
mod gate;
mod jobs;
mod model;
mod openapi;
mod pages;
mod protection;
mod views;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use vmtwin_server::{Limits, Listener, Problem, ServerCertificate};
use zeroize::Zeroizing;

use crate::cli::ServeArgs;
use crate::db::Db;
use crate::home::Home;
use crate::task::Runner;

pub(crate) use access::new_token;

/// Connections at one time: event streams stay open.
const CONNECTIONS: usize = 2048;
/// Life of a connection; an event stream that ends is begun again by who watches.
const CONNECTION_LIFE: Duration = Duration::from_secs(3600);
/// Longest body of a request.
const BODY_BYTES: usize = 1 << 20;
/// Time for what was begun when the end is asked for.
const GRACE: Duration = Duration::from_secs(2);

/// What the handlers share.
pub(crate) struct Api {
    home: Home,
    db: Db,
    runner: Arc<Runner>,
    host: String,
    /// Cookies go over TLS only.
    is_secure: bool,
    guesses: access::Guesses,
    /// Looks at one time.
    looks: tokio::sync::Semaphore,
    /// Folder that `restore --to` is below.
    restore_root: PathBuf,
    openapi: String,
}

type Shared = Arc<Api>;
type Answer<T> = Result<T, Problem>;

/// Looks that run at one time, each a process.
const LOOKS: usize = 4;

impl Api {
    pub(crate) fn new(home: &Home, runner: Arc<Runner>, args: &ServeArgs) -> Result<Shared> {
        Ok(Arc::new(Api {
            home: home.clone(),
            db: Db::open(home)?,
            runner,
            host: crate::timer::host()?,
            is_secure: is_secure(args),
            guesses: access::Guesses::default(),
            looks: tokio::sync::Semaphore::new(LOOKS),
            restore_root: restore_root(home, args)?,
            openapi: serde_json::to_string_pretty(&openapi::document())?,
        }))
    }

    /// Does what waits on a thread that may.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Api) -> Result<T> + Send + 'static,
    ) -> Answer<T> {
        let api = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&api)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(problem_of(&error)),
            Err(_) => Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a handler failed; see the log of vmtwin serve",
            )),
        }
    }
}

/// The folder that restores go to; made if it is not there.
pub(crate) fn restore_root(home: &Home, args: &ServeArgs) -> Result<PathBuf> {
    let root = match &args.restore_root {
        Some(dir) => std::path::absolute(dir)?,
        None => home.dir().join("restored"),
    };
    std::fs::create_dir_all(&root)
        .with_context(|| format!("cannot make the folder {}", root.display()))?;
    Ok(root)
}

/// What an error is to who asks.
fn problem_of(error: &anyhow::Error) -> Problem {
    use vmtwin_catalog::Error as Catalog;
    let status = match error.downcast_ref::<Catalog>() {
        Some(Catalog::NoTask { .. } | Catalog::NoSchedule { .. } | Catalog::NoSnapshot { .. }) => {
            StatusCode::NOT_FOUND
        }
        Some(Catalog::Invalid { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Problem::new(status, format!("{error:#}"))
}

fn is_secure(args: &ServeArgs) -> bool {
    args.tls_cert.is_some() || !args.listen.ip().is_loopback()
}

/// Listens where `args` say.
pub(crate) async fn listen(home: &Home, args: &ServeArgs) -> Result<(Listener, Option<String>)> {
    let certificate = match (&args.tls_cert, &args.tls_key) {
        (Some(chain), Some(key)) => Some(ServerCertificate {
            chain: read(chain)?,
            key: Zeroizing::new(read(key)?),
        }),
        _ if is_secure(args) => Some(own_certificate(home, args.listen)?),
        _ => None,
    };
    let limits = Limits {
        connections: CONNECTIONS,
        connection: CONNECTION_LIFE,
        body_bytes: BODY_BYTES,
        grace: GRACE,
        ..Limits::default()
    };
    let listener = Listener::bind_for_people(args.listen, certificate.as_ref(), limits).await?;
    let fingerprint = certificate.map(|it| it.fingerprint()).transpose()?;
    Ok((listener, fingerprint))
}

fn read(file: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The certificate that was made for this host before, or a new one.
fn own_certificate(home: &Home, listen: SocketAddr) -> Result<ServerCertificate> {
    let dir = home.serve_dir()?;
    let (chain, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
    if chain.exists() && key.exists() {
        return Ok(ServerCertificate {
            chain: read(&chain)?,
            key: Zeroizing::new(read(&key)?),
        });
    }
    let mut names = vec![crate::timer::host()?, "localhost".to_owned()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    let made = ServerCertificate::self_signed(names)?;
    crate::home::write_private(&key, made.key.as_bytes())?;
    crate::home::write_private(&chain, made.chain.as_bytes())?;
    Ok(made)
}

/// Serves until `end`.
pub(crate) async fn serve(api: &Shared, listener: Listener, end: impl Future<Output = ()>) {
    listener.serve(router(api), end).await;
}

fn router(api: &Shared) -> Router {
    let v1 = Router::new()
        .route("/overview", get(views::overview))
        .route("/vms/{name}", get(views::vm))
        .route("/snapshots", get(views::snapshots))
        .route("/snapshots/{id}", get(views::snapshot))
        .route("/snapshots/{id}/download", get(download::file))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::one))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/events", get(jobs::events_of_one))
        .route("/events", get(jobs::events))
        .route("/commands", post(jobs::command_line))
        .route("/commands/{*words}", post(jobs::command))
        .route("/schedules", get(views::schedules))
        .route("/cluster", get(views::cluster))
        .route("/growth", get(views::growth))
        .route("/deletions", get(views::deletions))
        .route("/audit", get(views::audit))
        .route(
            "/session",
            get(access::who)
                .post(access::log_in)
                .delete(access::log_out),
        )
        .route("/tokens", get(access::tokens).post(access::add_token))
        .route("/tokens/{name}", delete(access::remove_token))
        .fallback(async || not_found("there is no such resource; see /openapi.json"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "not by this method; see /openapi.json",
            )
        });
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(views::ready))
        .route("/metrics", get(views::metrics))
        .route("/openapi.json", get(openapi_json))
        .nest("/api/v1", v1)
        .fallback(pages::page)
        .layer(middleware::from_fn(headers))
        .with_state(Arc::clone(api))
}

fn not_found(detail: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn openapi_json(State(api): State<Shared>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, api.openapi.clone()).into_response()
}

/// What every answer says to browsers. Nothing of another host is ever loaded.
async fn headers(request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let fields = response.headers_mut();
    for (name, value) in vmtwin_web::SECURITY_HEADERS {
        fields.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    // What is told here is true now, and for who asked alone; pages say otherwise themselves.
    fields
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
