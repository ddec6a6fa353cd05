//! Commands as jobs: asked for, listed, watched, cancelled.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::broadcast::{self, error::RecvError};
use utoipa::{IntoParams, ToSchema};
use vmtwin_catalog::{Cursor, NewTask, Scope, TaskId, TaskState};
use vmtwin_server::Problem;

use super::access::{Body, Caller, Named, Params, body};
use super::gate::{self, Bounds, Checked};
use super::model::{Job, ListOf, ProblemView};
use super::{Answer, Api, Shared, commands};
use crate::task::{Ended, Event};

/// Longest wait for the end of a job, seconds.
const MAX_WAIT_S: u64 = 120;
/// How long what only looks may take.
const LOOK_LIMIT: Duration = Duration::from_secs(120);
/// Longest idempotency key.
const MAX_KEY_CHARS: usize = 200;
const PING: Duration = Duration::from_secs(15);
pub(super) const DEFAULT_LIMIT: u32 = 50;
pub(super) const MAX_LIMIT: u32 = 500;

/// How to wait.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// Seconds to wait for the end of the job, up to 120.
    #[param(minimum = 0, maximum = 120)]
    wait: Option<u64>,
}

/// A command line.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandLine {
    /// What follows the program's name.
    #[schema(max_items = 1000, value_type = Vec<String>)]
    arguments: Vec<String>,
}

/// Ask for a command as a command line.
#[utoipa::path(post, path = "/api/v1/commands", tag = "commands", request_body = CommandLine,
    params(Waiting, ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Job, description = "it has ended, or only looked"),
        (status = 201, body = Job), (status = "4XX", body = ProblemView)))]
pub(super) async fn command_line(
    State(api): State<Shared>,
    caller: Caller,
    Params(waiting): Params<Waiting>,
    headers: HeaderMap,
    given: Body<CommandLine>,
) -> Answer<Response> {
    let arguments = body(given)?.arguments;
    ask(&api, caller, arguments, &waiting, &headers).await
}

/// `POST /api/v1/commands/WORDS`; described for each command by `openapi.rs`.
pub(super) async fn command(
    State(api): State<Shared>,
    caller: Caller,
    Named(words): Named,
    Params(waiting): Params<Waiting>,
    headers: HeaderMap,
    given: Body<Map<String, Value>>,
) -> Answer<Response> {
    let asked = commands::find(&words.replace('/', " "));
    let asked = asked.ok_or_else(|| {
        super::not_found("there is no such command to ask for; see /openapi.json")
    })?;
    let line = asked.line(&body(given)?);
    let line = line.map_err(|why| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    ask(&api, caller, line, &waiting, &headers).await
}

async fn ask(
    api: &Shared,
    caller: Caller,
    mut arguments: Vec<String>,
    waiting: &Waiting,
    headers: &HeaderMap,
) -> Answer<Response> {
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "an argument holds a zero character",
        ));
    }
    let wait = waiting.wait.unwrap_or(0);
    if wait > MAX_WAIT_S {
        let why = format!("wait: up to {MAX_WAIT_S} seconds");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why));
    }
    let key = key_of(headers)?;
    let is_delayed = api.home.deletion_delay().is_some();
    let checked = checked(api, &arguments, is_delayed)?;
    if let Err(problem) = caller.needs(checked.needs) {
        note(api, &caller, &checked, &arguments, "refused").await?;
        return Err(problem);
    }
    // Both are said by the runner itself.
    arguments.retain(|argument| argument != "--json");
    if checked.is_look {
        return look(api, caller, checked, arguments).await;
    }
    note(api, &caller, &checked, &arguments, "asked").await?;
    let watch = api.runner.hub().watch();
    let new = NewTask {
        command: checked.words,
        arguments,
        asked_by: caller.name,
        asked_key: key,
        vm_name: checked.vm,
    };
    let runner = Arc::clone(&api.runner);
    let (task, _) = api.blocking(move |_| runner.submit(&new)).await?;
    let place = [(header::LOCATION, format!("/api/v1/jobs/{}", task.id))];
    if wait > 0 && !task.state.is_over() {
        let limit = Duration::from_secs(wait);
        let _ = tokio::time::timeout(limit, until_over(&task.id, watch)).await;
    }
    let job = full(api, &task.id).await?;
    let status = match wait > 0 && job.ended_at.is_some() {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    Ok((status, place, Json(job)).into_response())
}

fn checked(api: &Api, line: &[String], is_delayed: bool) -> Answer<Checked> {
    let cluster = api.home.dir().join("cluster");
    let bounds = Bounds {
        folders: &[&api.restore_root, &cluster],
        is_delayed,
    };
    gate::check(line, &bounds)
}

fn key_of(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = key.to_str().ok().filter(|key| {
        !key.is_empty() && key.len() <= MAX_KEY_CHARS && key.chars().all(|c| c.is_ascii_graphic())
    });
    let wrong = || {
        let why = format!("an Idempotency-Key has up to {MAX_KEY_CHARS} visible characters");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why)
    };
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

async fn note(
    api: &Shared,
    caller: &Caller,
    checked: &Checked,
    arguments: &[String],
    outcome: &'static str,
) -> Answer<()> {
    let (who, from) = (caller.name.clone(), caller.from.clone());
    let words = checked.words.clone();
    let skip = words.split(' ').count();
    let detail = arguments.iter().skip(skip).cloned().collect::<Vec<_>>();
    let detail = detail.join(" ");
    api.blocking(move |api| {
        Ok(api
            .db
            .run(async |c| c.note_audit(&who, &from, &words, &detail, outcome).await)?)
    })
    .await
}

/// Sets a flag when it goes away: who asked has gone.
struct WhenGone(Arc<AtomicBool>);

impl Drop for WhenGone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What only looks is done at once, and kept nowhere.
async fn look(
    api: &Shared,
    caller: Caller,
    checked: Checked,
    arguments: Vec<String>,
) -> Answer<Response> {
    let Ok(_permit) = api.looks.acquire().await else {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "it ends"));
    };
    let began = OffsetDateTime::now_utc();
    let gone = WhenGone(Arc::default());
    let flag = Arc::clone(&gone.0);
    let line = arguments.clone();
    let ended: Ended = api
        .blocking(move |api| {
            let since = std::time::Instant::now();
            let over = || flag.load(Ordering::Relaxed) || since.elapsed() > LOOK_LIMIT;
            api.runner.look(&line, &over)
        })
        .await?;
    drop(gone);
    let good = matches!(ended.state, TaskState::Done | TaskState::Warnings);
    let skip = checked.words.split(' ').count();
    let job = Job {
        id: None,
        command: checked.words,
        arguments: arguments.into_iter().skip(skip).collect(),
        by: caller.name,
        vm: checked.vm,
        state: ended.state.to_string(),
        created_at: began,
        started_at: Some(began),
        ended_at: Some(OffsetDateTime::now_utc()),
        progress: None,
        exit_code: ended.exit_code.map(i64::from),
        error: (!good).then_some(ended.said),
        result: Some(ended.result),
        text: ended.text,
        log: None,
    };
    Ok(Json(job).into_response())
}

async fn until_over(id: &TaskId, mut watch: broadcast::Receiver<Event>) {
    loop {
        match watch.recv().await {
            Ok(Event::Job(live)) if live.task.id == *id && live.task.state.is_over() => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// A job with all that is known of it.
async fn full(api: &Shared, id: &TaskId) -> Answer<Job> {
    let id = id.clone();
    api.blocking(move |api| {
        if let Some(live) = api.runner.hub().live(&id) {
            return Ok(Job {
                log: Some(api.runner.hub().log(&id)),
                ..Job::from(&live)
            });
        }
        let mut task = api.db.run(async |c| c.task(&id).await)?;
        let (result, text) = (task.result.take(), task.text.take());
        let log = task.log.take();
        Ok(Job {
            result,
            text,
            log: Some(log.map_or_else(Vec::new, |log| log.lines().map(str::to_owned).collect())),
            ..Job::from(task)
        })
    })
    .await
}

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// About this guest.
    vm: Option<String>,
    /// In this state.
    state: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Where a list before ended.
    cursor: Option<String>,
}

/// How many, within bounds.
pub(super) fn limited(limit: Option<u32>) -> anyhow::Result<u32> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    match (1..=MAX_LIMIT).contains(&limit) {
        true => Ok(limit),
        false => Err(vmtwin_catalog::Error::Invalid {
            what: "the limit",
            why: format!("it is from 1 to {MAX_LIMIT}"),
        }
        .into()),
    }
}

/// Jobs, the latest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(Which),
    responses((status = 200, body = ListOf<Job>), (status = "4XX", body = ProblemView)))]
pub(super) async fn list(
    State(api): State<Shared>,
    _caller: Caller,
    Params(which): Params<Which>,
) -> Answer<Json<ListOf<Job>>> {
    let list = api.blocking(move |api| {
        let state = which
            .state
            .as_deref()
            .map(str::parse::<TaskState>)
            .transpose()?;
        let cursor = which
            .cursor
            .as_deref()
            .map(str::parse::<Cursor>)
            .transpose()?;
        let (vm, limit) = (which.vm.as_deref(), limited(which.limit)?);
        let page = api
            .db
            .run(async |c| c.tasks(vm, state, cursor.as_ref(), limit).await)?;
        let job = |task: vmtwin_catalog::Task| match api.runner.hub().live(&task.id) {
            Some(live) => Job::from(&live),
            None => Job::from(task),
        };
        Ok(ListOf {
            items: page.items.into_iter().map(job).collect(),
            next: page.next.map(|next| next.to_string()),
        })
    });
    Ok(Json(list.await?))
}

fn parsed(id: &str) -> Answer<TaskId> {
    id.parse()
        .map_err(|_| super::not_found("there is no such job"))
}

/// A job, with what it printed and said.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Job), (status = "4XX", body = ProblemView)))]
pub(super) async fn one(
    State(api): State<Shared>,
    _caller: Caller,
    Named(id): Named,
) -> Answer<Json<Job>> {
    Ok(Json(full(&api, &parsed(&id)?).await?))
}

/// End a job as Ctrl-C does: what it began is undone.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path)),
    responses((status = 202, description = "it will end"), (status = "4XX", body = ProblemView)))]
pub(super) async fn cancel(
    State(api): State<Shared>,
    caller: Caller,
    Named(id): Named,
) -> Answer<StatusCode> {
    let id = parsed(&id)?;
    let job = full(&api, &id).await?;
    // Who may begin such a thing may end it.
    let line: Vec<String> = job.command.split(' ').map(str::to_owned).collect();
    let line: Vec<String> = line.into_iter().chain(job.arguments).collect();
    let checked = checked(&api, &line, false)?;
    caller.needs(Scope::Backup)?;
    caller.needs(checked.needs)?;
    note(&api, &caller, &checked, &line, "cancelled").await?;
    let runner = Arc::clone(&api.runner);
    match api.blocking(move |_| runner.cancel(&id)).await? {
        true => Ok(StatusCode::ACCEPTED),
        false => Err(Problem::new(
            StatusCode::CONFLICT,
            "the job is over already",
        )),
    }
}

/// Follow a job: server-sent events `job` and `log` until it is over.
#[utoipa::path(get, path = "/api/v1/jobs/{id}/events", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, description = "text/event-stream"),
        (status = "4XX", body = ProblemView)))]
pub(super) async fn events_of_one(
    State(api): State<Shared>,
    _caller: Caller,
    Named(id): Named,
) -> Answer<Response> {
    let id = parsed(&id)?;
    // Watched before it is read: nothing falls in between.
    let watch = api.runner.hub().watch();
    let job = full(&api, &id).await?;
    let mut first: Vec<Sent> = Vec::new();
    first.extend(job.log.iter().flatten().map(|line| log_event(line)));
    let is_over = job.ended_at.is_some();
    first.push(job_event(&job));
    Ok(streamed(Following {
        api,
        watch,
        waiting: first.into(),
        only: Some(id),
        is_over,
    }))
}

/// Follow all jobs: server-sent events `job`.
#[utoipa::path(get, path = "/api/v1/events", tag = "jobs",
    responses((status = 200, description = "text/event-stream"),
        (status = "4XX", body = ProblemView)))]
pub(super) async fn events(State(api): State<Shared>, _caller: Caller) -> Response {
    let watch = api.runner.hub().watch();
    streamed(Following {
        api,
        watch,
        waiting: VecDeque::new(),
        only: None,
        is_over: false,
    })
}

/// Somebody who watches.
struct Following {
    api: Shared,
    watch: broadcast::Receiver<Event>,
    waiting: VecDeque<Sent>,
    /// One job; none: all, without what they say.
    only: Option<TaskId>,
    is_over: bool,
}

impl Following {
    /// What is to be told next; nothing more once the job is over.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.watch.recv().await {
                Ok(Event::Job(live)) if self.only.as_ref().is_none_or(|id| *id == live.task.id) => {
                    self.is_over = self.only.is_some() && live.task.state.is_over();
                    self.waiting.push_back(job_event(&Job::from(&*live)));
                }
                Ok(Event::Line(id, line)) if self.only.as_ref() == Some(&id) => {
                    self.waiting.push_back(log_event(&line));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.catch_up().await,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Parts were lost: how it is now is told at once.
    async fn catch_up(&mut self) {
        let Some(id) = self.only.clone() else { return };
        if let Ok(job) = full(&self.api, &id).await {
            self.is_over = job.ended_at.is_some();
            self.waiting.push_back(job_event(&job));
        }
    }
}

fn streamed(following: Following) -> Response {
    let stream = futures_util::stream::unfold(following, async |mut following| {
        let event = following.next().await?;
        Some((Ok::<_, Infallible>(event), following))
    });
    let alive = KeepAlive::new().interval(PING).text("alive");
    Sse::new(Box::pin(stream)).keep_alive(alive).into_response()
}

fn job_event(job: &Job) -> Sent {
    let data = serde_json::to_string(job).unwrap_or_default();
    Sent::default().event("job").data(data)
}

fn log_event(line: &str) -> Sent {
    let data = json!({ "line": line }).to_string();
    Sent::default().event("log").data(data)
}
