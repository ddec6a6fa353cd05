//! The timer: starts what schedules say when it is due.
//!
//! ```text
//!   every rest: schedules of this host ─► latest due time ─► claimed? ─► guests, some at once
//!                                                              │            └─ `vmtwin backup VM` each
//!                                                              └─ too late: missed    then retention
//! ```
//! Nothing is remembered but in the catalog: what was done for a due time is a row, whose insertion
//! is the claim. So a restart, a clock that is set, and a second timer do nothing twice, and of what
//! was due while nobody looked the latest is done once.
//!
//! A schedule of a cluster is followed by every node, each for the guests that are on it when the time
//! comes: the node's part is a row too. What comes after all parts is done once, by the node that
//! comes first (`nodes.rs`).
//!
//! Backups run as processes of their own: they take their memory with them, and one that dies takes
//! nothing else down.

mod chores;
mod nodes;
mod on_change;
mod spec;
mod work;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use time::OffsetDateTime;
use vmtwin_catalog::{ProcessIdentity, RunOutcome, Schedule};

use crate::backup::Cx;
use crate::cluster::place::Here;
use crate::task::Runner;
use crate::{notify, recover};

pub(crate) use spec::{Spec, When};
pub(crate) use work::{Done, run_now};

/// How long the loop rests at most: a clock that is set is noticed by then.
const REST: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);
/// How long runs are remembered.
const MEMORY: time::Duration = time::Duration::days(400);
/// What stands for all guests of a run that was not begun.
pub(crate) const ALL: &str = "all";

/// The name of this host, by which schedules are its own.
pub(crate) fn host() -> Result<String> {
    Ok(ProcessIdentity::of_self()?.host)
}

/// How a due time went: the worst of its parts; none while one of them runs.
pub(crate) fn worst(parts: &[Option<RunOutcome>]) -> Option<RunOutcome> {
    let order = [
        RunOutcome::Failed,
        RunOutcome::Interrupted,
        RunOutcome::Missed,
        RunOutcome::Warnings,
        RunOutcome::Done,
    ];
    let ended: Vec<RunOutcome> = parts.iter().copied().collect::<Option<_>>()?;
    order.into_iter().find(|outcome| ended.contains(outcome))
}

/// Starts what is due, until it is told to end, or `over` says so; what runs then is ended in order.
pub(crate) fn follow(cx: &Cx<'_>, runner: &Runner, over: &dyn Fn() -> bool) -> Result<()> {
    let host = host()?;
    let busy = Mutex::new(HashSet::new());
    // What an earlier process began is undone now, not with a guest's next backup.
    if let Err(error) = recover::dead_jobs(cx) {
        cx.ui.note(&format!("warning: {error:#}"));
    }
    mark_dead_runs(cx)?;
    runner.clean_up()?;
    if let Err(error) = notify::sweep(cx, &host) {
        cx.ui.note(&format!("warning: {error:#}"));
    }
    let long_ago = OffsetDateTime::now_utc() - MEMORY;
    cx.db.run(async |c| c.forget_runs(long_ago).await)?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| notify::follow(cx, &ended));
        scope.spawn(|| chores::follow(cx, runner, &ended));
        scope.spawn(|| on_change::watch(cx, &ended));
        let mut looked: Option<Instant> = None;
        let mut beaten: Option<Instant> = None;
        while !cx.cancel.is_set() && !over() {
            if looked.is_some_and(|at| at.elapsed() < REST) {
                thread::sleep(POLL);
                continue;
            }
            looked = Some(Instant::now());
            nodes::beat(cx, &mut beaten);
            let due = due_now(cx, &host).unwrap_or_else(|error| {
                cx.ui
                    .note(&format!("the schedules cannot be read: {error:#}"));
                Vec::new()
            });
            for due in due {
                let id = due.schedule.id.clone();
                if !lock(&busy).insert(id.clone()) {
                    continue; // its last run goes on
                }
                let busy = &busy;
                scope.spawn(move || {
                    work::run(cx, runner, &due);
                    lock(busy).remove(&id);
                });
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is due of a schedule.
enum Part {
    /// Its guests, as far as they are on this host.
    Guests,
    /// What comes after the parts of all nodes.
    AfterAll,
}

/// A schedule that is due.
struct Due {
    schedule: Schedule,
    part: Part,
    spec: Spec,
    at: OffsetDateTime,
    /// With its jitter.
    begins: OffsetDateTime,
}

/// The schedules of this host that are due and were not begun. One that is too late is noted so.
fn due_now(cx: &Cx<'_>, host: &str) -> Result<Vec<Due>> {
    let now = OffsetDateTime::now_utc();
    let mut all = Vec::new();
    let here = Here::of(cx.home, cx.db)?;
    for schedule in cx.db.run(async |c| c.schedules().await)? {
        match due_of(cx, &here, schedule, (host, now)) {
            Ok(due) => all.extend(due),
            Err(error) => cx.ui.note(&format!("warning: {error:#}")),
        }
    }
    Ok(all)
}

fn due_of(
    cx: &Cx<'_>,
    here: &Here,
    schedule: Schedule,
    (host, now): (&str, OffsetDateTime),
) -> Result<Option<Due>> {
    let spec = Spec::of(&schedule)?;
    if !schedule.enabled || !spec.is_followed_by(host, here.node().is_some()) {
        return Ok(None);
    }
    let created = schedule.created_at;
    let at = match spec.when {
        When::OnChange(settle_s) => on_change::latest_due(cx, created, settle_s, now)?,
        _ => spec.latest_due(created, now)?,
    };
    let Some(at) = at else {
        return Ok(None);
    };
    let begins = spec.begins(&schedule.name, at);
    if begins > now {
        return Ok(None);
    }
    let node = here.own().filter(|_| spec.is_of_all_nodes());
    if node.is_some_and(|node| node.joined_at > at) {
        return Ok(None); // it was none of the cluster's then
    }
    let subject = node.map(|node| nodes::subject(&node.name));
    let mut due = Due {
        schedule,
        part: Part::Guests,
        spec,
        at,
        begins,
    };
    let begun = latest_begun(cx, &due, subject.as_deref())?;
    // First what ended: the last node to end its part finds all others' ended, also where the next
    // due time has come meanwhile.
    if let (Some(_), Some(before)) = (&subject, begun)
        && nodes::are_all_done(cx, here, &due.schedule, before)?
    {
        (due.part, due.at) = (Part::AfterAll, before);
        return Ok(Some(due));
    }
    // Rows keep microseconds, due times have none.
    if begun.is_some_and(|begun| begun >= at) {
        return Ok(None);
    }
    if due.spec.is_over(begins, now) {
        miss(cx, &due, subject.as_deref().unwrap_or(ALL))?;
        return Ok(None);
    }
    Ok(Some(due))
}

/// The latest due time that was begun, or of which the node's part was.
fn latest_begun(cx: &Cx<'_>, due: &Due, subject: Option<&str>) -> Result<Option<OffsetDateTime>> {
    let id = &due.schedule.id;
    Ok(match subject {
        Some(subject) => cx.db.run(async |c| c.latest_due(id, subject).await)?,
        None => {
            let runs = cx.db.run(async |c| c.runs(id, 1).await)?;
            runs.first().map(|run| run.due_at)
        }
    })
}

fn miss(cx: &Cx<'_>, due: &Due, subject: &str) -> Result<()> {
    let (db, id, at) = (cx.db, &due.schedule.id, due.at);
    if db.run(async |c| c.claim_run(id, at, subject).await)? {
        let (outcome, note) = (RunOutcome::Missed, Some("nothing followed it in time"));
        db.run(async |c| c.finish_run(id, at, subject, outcome, note).await)?;
        cx.ui.note(&format!("{}: missed", due.schedule.name));
        notify::after_run(cx, &due.schedule, at);
    }
    Ok(())
}

/// Runs whose process is gone did not end by themselves.
fn mark_dead_runs(cx: &Cx<'_>) -> Result<()> {
    for run in cx.db.run(async |c| c.dead_runs().await)? {
        let outcome = RunOutcome::Interrupted;
        let note = Some("its process is gone");
        cx.db.run(async |c| {
            c.finish_run(&run.schedule_id, run.due_at, &run.subject, outcome, note)
                .await
        })?;
    }
    Ok(())
}
