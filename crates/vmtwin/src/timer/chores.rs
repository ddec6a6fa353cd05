//! What a host's repositories need now and then, without a schedule: snapshots whose deletion delay is
//! over are removed (`vmtwin snapshot forget --due`), and object locks renewed (`vmtwin repo renew`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{NewTask, TaskState};

use crate::backup::Cx;
use crate::command::repo::renewed_key;
use crate::task::Runner;

/// Between two looks.
const REST: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(200);
/// Locks are renewed after one part of their time out of so many.
const RENEWALS: i32 = 3;
/// Who asks, in the list of jobs.
const WHO: &str = "upkeep";

/// Does what is due, now and then, until the end.
pub(super) fn follow(cx: &Cx<'_>, runner: &Runner, ended: &AtomicBool) {
    let mut looked: Option<Instant> = None;
    while !ended.load(Ordering::Relaxed) {
        if looked.is_none_or(|at| at.elapsed() >= REST) {
            looked = Some(Instant::now());
            if let Err(error) = deletions(cx, runner) {
                let text = "what is due to be removed stays";
                cx.ui.note(&format!("warning: {text}: {error:#}"));
            }
            if let Err(error) = object_locks(cx, runner) {
                let text = "object locks are not renewed";
                cx.ui.note(&format!("warning: {text}: {error:#}"));
            }
        }
        thread::sleep(POLL);
    }
}

fn deletions(cx: &Cx<'_>, runner: &Runner) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let mut due = cx.db.run(async |c| c.deletions(None).await)?;
    due.retain(|one| one.due_at <= now);
    for (name, repository) in cx.home.named()? {
        let before = due.len();
        due.retain(|one| one.repository_id != repository.id);
        if due.len() < before {
            forget(cx, runner, Some(name))?;
        }
    }
    match due.is_empty() {
        true => Ok(()),
        false => forget(cx, runner, None),
    }
}

fn forget(cx: &Cx<'_>, runner: &Runner, repository: Option<String>) -> Result<()> {
    let arguments = ["snapshot", "forget", "--due"];
    run(cx, runner, "snapshot forget", &arguments, repository)
}

/// Renews what was renewed, or first seen, long enough ago.
fn object_locks(cx: &Cx<'_>, runner: &Runner) -> Result<()> {
    let Some(time) = cx.home.object_lock() else {
        return Ok(());
    };
    for (name, _) in cx.home.named()? {
        let location = cx.home.at(&name).location()?.to_string();
        if is_stale(cx, &location, time / RENEWALS)? {
            renew(cx, runner, Some(name))?;
        }
    }
    let main = cx.home.location()?.to_string();
    match is_stale(cx, &main, time / RENEWALS)? {
        true => renew(cx, runner, None),
        false => Ok(()),
    }
}

/// Whether the locks of the repository there have to be renewed.
fn is_stale(cx: &Cx<'_>, location: &str, after: time::Duration) -> Result<bool> {
    if !location.starts_with("s3:") {
        return Ok(false);
    }
    let key = renewed_key(location);
    let Some(text) = cx.db.run(async |c| c.setting(&key).await)? else {
        // It may be older than the option: now rather than a third too late.
        return Ok(true);
    };
    let last = OffsetDateTime::parse(&text, &Rfc3339)?;
    Ok(OffsetDateTime::now_utc() - last > after)
}

fn renew(cx: &Cx<'_>, runner: &Runner, repository: Option<String>) -> Result<()> {
    run(cx, runner, "repo renew", &["repo", "renew"], repository)
}

fn run(
    cx: &Cx<'_>,
    runner: &Runner,
    command: &str,
    arguments: &[&str],
    repository: Option<String>,
) -> Result<()> {
    let mut arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    arguments.extend(repository.map(|name| format!("--repo={name}")));
    let new = NewTask {
        command: command.to_owned(),
        arguments,
        asked_by: WHO.to_owned(),
        asked_key: None,
        vm_name: None,
    };
    let ended = runner.run(&new, &|| cx.cancel.is_set())?;
    match ended.state {
        TaskState::Failed => bail!("{}", ended.said),
        _ => Ok(()),
    }
}
