//! A schedule that all nodes of a cluster follow: what each one did, and what comes after all.
//!
//! A node's part is a row with its name, so that a node that was away does its own part when it is
//! back. Once the parts of all nodes that are there have ended, one of them, the first one, notes the
//! guests that nobody backed up, and applies the retention.

use std::time::{Duration, Instant};

use anyhow::Result;
use time::OffsetDateTime;
use vmtwin_catalog::{RunOutcome, Schedule, ScheduleRun, Vm};

use super::work::Run;
use crate::backup::Cx;
use crate::cluster::place::{Here, Place};

/// What stands for the end of all parts.
pub(super) const AFTER_ALL: &str = "all nodes";
/// How often a node says that it is there, at least.
const BEAT: Duration = Duration::from_secs(30);
/// Guests that are named in a note, at most.
const MAX_NAMED: usize = 10;

/// What stands for a node's part.
pub(super) fn subject(node: &str) -> String {
    format!("node {node}")
}

/// Says that this node is there, if it is time.
pub(super) fn beat(cx: &Cx<'_>, last: &mut Option<Instant>) {
    if let Err(error) = try_beat(cx, last) {
        let text = format!("warning: cannot say that this node is there: {error:#}");
        cx.ui.note(&text);
    }
}

fn try_beat(cx: &Cx<'_>, last: &mut Option<Instant>) -> Result<()> {
    let here = Here::of(cx.home, cx.db)?;
    let Some(node) = here.node() else {
        return Ok(());
    };
    let often = BEAT.min(here.lease() / 3);
    if last.is_none_or(|last| last.elapsed() >= often) {
        cx.db.run(async |c| c.touch_node(node).await)?;
        *last = Some(Instant::now());
    }
    Ok(())
}

/// Whether all nodes that are there have ended their parts, and what comes after was not begun.
pub(super) fn are_all_done(
    cx: &Cx<'_>,
    here: &Here,
    schedule: &Schedule,
    at: OffsetDateTime,
) -> Result<bool> {
    let id = &schedule.id;
    let after = cx.db.run(async |c| c.latest_due(id, AFTER_ALL).await)?;
    if after.is_some_and(|after| after >= at) {
        return Ok(false);
    }
    let runs = cx.db.run(async |c| c.runs_of(id, at).await)?;
    let has_ended = |subject: String| {
        let mut parts = runs.iter().filter(|run| run.subject == subject);
        parts.any(|run| run.ended_at.is_some())
    };
    let mut nodes = here.there().filter(|node| node.joined_at <= at);
    Ok(nodes.all(|node| has_ended(subject(&node.name))))
}

/// Notes what nobody did.
pub(super) fn sum_up(run: &Run<'_>) -> Result<(RunOutcome, Option<String>)> {
    let (db, id, at) = (run.cx.db, &run.schedule.id, run.at);
    let here = Here::of(run.cx.home, db)?;
    let runs = db.run(async |c| c.runs_of(id, at).await)?;
    for cut_off in runs.iter().filter(|run| is_cut_off(&here, run)) {
        let (outcome, note) = (RunOutcome::Interrupted, Some("its node is silent"));
        let subject = &cut_off.subject;
        db.run(async |c| c.finish_run(id, at, subject, outcome, note).await)?;
    }
    let vms = db.run(async |c| c.vms().await)?;
    let is_left = |vm: &&Vm| {
        let done = runs.iter().any(|run| run.subject == vm.id.as_str());
        run.spec.wants(vm) && vm.added_at <= at && !done
    };
    let left: Vec<&Vm> = vms.iter().filter(is_left).collect();
    if left.is_empty() {
        return Ok((RunOutcome::Done, None));
    }
    let named = left.iter().take(MAX_NAMED).map(|vm| where_it_is(&here, vm));
    let more = match left.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = named.collect::<Vec<_>>().join(", ");
    let note = format!("not backed up: {named}{more}");
    Ok((RunOutcome::Failed, Some(note)))
}

/// Its process is on a host that nothing is heard of.
fn is_cut_off(here: &Here, run: &ScheduleRun) -> bool {
    let is_there = here.there().any(|node| node.host == run.owner.host);
    run.ended_at.is_none() && !is_there
}

fn where_it_is(here: &Here, vm: &Vm) -> String {
    let name = &vm.name;
    match here.place(vm) {
        Place::Silent(node) => format!("{name} ({node} is silent)"),
        Place::Nowhere => format!("{name} (on no node)"),
        Place::Here | Place::On(_) => format!("{name} (moved meanwhile)"),
    }
}
