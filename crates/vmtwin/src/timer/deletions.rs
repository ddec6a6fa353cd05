//! Snapshots whose deletion delay is over are removed, by `vmtwin snapshot forget --due`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use time::OffsetDateTime;
use vmtwin_catalog::{NewTask, TaskState};

use crate::backup::Cx;
use crate::task::Runner;

/// Between two looks.
const REST: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(200);
/// Who asks, in the list of jobs.
const WHO: &str = "deletion delay";

/// Removes what is due, now and then, until the end.
pub(super) fn follow(cx: &Cx<'_>, runner: &Runner, ended: &AtomicBool) {
    let mut looked: Option<Instant> = None;
    while !ended.load(Ordering::Relaxed) {
        if looked.is_none_or(|at| at.elapsed() >= REST) {
            looked = Some(Instant::now());
            if let Err(error) = look(cx, runner) {
                let text = "what is due to be removed stays";
                cx.ui.note(&format!("warning: {text}: {error:#}"));
            }
        }
        thread::sleep(POLL);
    }
}

fn look(cx: &Cx<'_>, runner: &Runner) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let mut due = cx.db.run(async |c| c.deletions(None).await)?;
    due.retain(|one| one.due_at <= now);
    for (name, repository) in cx.home.named()? {
        let before = due.len();
        due.retain(|one| one.repository_id != repository.id);
        if due.len() < before {
            remove(cx, runner, Some(name))?;
        }
    }
    match due.is_empty() {
        true => Ok(()),
        false => remove(cx, runner, None),
    }
}

fn remove(cx: &Cx<'_>, runner: &Runner, repository: Option<String>) -> Result<()> {
    let mut arguments = ["snapshot", "forget", "--due"].map(str::to_owned).to_vec();
    arguments.extend(repository.map(|name| format!("--repo={name}")));
    let new = NewTask {
        command: "snapshot forget".to_owned(),
        arguments,
        asked_by: WHO.to_owned(),
        asked_key: None,
        vm_name: None,
    };
    let ended = runner.run(&new, &|| cx.cancel.is_set())?;
    if ended.state == TaskState::Failed {
        anyhow::bail!("{}", ended.said);
    }
    Ok(())
}
