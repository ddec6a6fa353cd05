//! Further repositories of a guest: each backup is copied to them once the guest is let go.
//!
//! ```text
//!   guest ──pause──► first repository that opens ──copy──► the others
//! ```
//! The guest is captured once, so that all hold the same point, and never waits for the slowest of
//! them. A copy moves only what the other repository lacks. One that fails is told, and made up for by
//! the next backup: all points of the guest that are newer than its newest there are copied.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use vmtwin_catalog::Vm;
use vmtwin_repository::{IngestOptions, Repository, Snapshot};

use super::{BackupReport, Cx};
use crate::cli::BackupArgs;
use crate::home::MAIN;
use crate::twin_args::Settings;
use crate::ui::BarProgress;

/// What became of a copy.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AlsoReport {
    /// Name of the repository.
    pub(crate) repository: String,
    /// Id of the point's snapshot there; none where it failed.
    pub(crate) snapshot: Option<String>,
    /// Points that were copied, with those that were missing from before.
    pub(crate) copied: usize,
    /// What they take there.
    pub(crate) bytes_stored: u64,
    pub(crate) seconds: f64,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

/// Names of the further repositories of a guest: of this command, else as set for it.
pub(crate) fn names(args: &BackupArgs, vm: &Vm) -> Result<Vec<String>> {
    let mut names = match args.also.as_slice() {
        [] => Settings::of(vm)?.also,
        given => given.to_vec(),
    };
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The repository that the guest is captured into: the main one, or the first further one that opens.
/// Gives its name, and why those before it were not taken.
pub(crate) fn open_first(
    cx: &Cx<'_>,
    names: &[String],
) -> Result<(String, Repository, Option<String>)> {
    let main = match cx.home.repository() {
        Ok(repository) => return Ok((MAIN.into(), repository, None)),
        Err(error) => error,
    };
    for name in names {
        match cx.home.open_named(name) {
            Ok(repository) => return Ok((name.clone(), repository, Some(format!("{main:#}")))),
            Err(error) => tracing::warn!("repository {name}: {error:#}"),
        }
    }
    Err(main)
}

/// Copies the guest's newest points from the repository that has them to the others of `names`.
pub(crate) fn copy(cx: &Cx<'_>, vm: &Vm, names: &[String], report: &mut BackupReport) {
    let (Some(id), Some(from)) = (report.snapshot.clone(), report.repository.clone()) else {
        return;
    };
    let others: Vec<&String> = names.iter().filter(|name| **name != from).collect();
    if others.is_empty() {
        return;
    }
    let source = match from.as_str() {
        MAIN => cx.home.repository(),
        name => cx.home.open_named(name),
    };
    for name in others {
        let begun = Instant::now();
        let mut also = AlsoReport {
            repository: name.clone(),
            snapshot: None,
            copied: 0,
            bytes_stored: 0,
            seconds: 0.0,
            error: None,
        };
        if let Err(error) = copy_one(cx, vm, &source, &id, &mut also) {
            let text = format!("{error:#}");
            super::warn(
                cx.ui,
                vm,
                report,
                format!("not copied to {name}; the next backup makes up for it: {text}"),
            );
            also.error = Some(text);
        }
        also.seconds = begun.elapsed().as_secs_f64();
        report.also.push(also);
    }
}

fn copy_one(
    cx: &Cx<'_>,
    vm: &Vm,
    source: &Result<Repository>,
    id: &str,
    also: &mut AlsoReport,
) -> Result<()> {
    let source = source.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let target = cx.home.open_named(&also.repository)?;
    let point = source.snapshot(id)?;
    let wanted = missing(source, &target, &vm.name, &point)?;
    let options = IngestOptions {
        cancel: Some(cx.cancel.flag()),
        ..IngestOptions::default()
    };
    if let Err(error) = target.remove_stale_locks() {
        tracing::warn!(%error, "could not remove stale locks of {}", also.repository);
    }
    let progress = BarProgress {
        bar: cx.ui.spinner(&format!("copying to {}", also.repository)),
        cancel: cx.cancel,
    };
    let copied = source.copy_to(&target, &wanted, &options, &progress);
    progress.bar.finish_and_clear();
    let copied = copied?;
    also.copied = copied.iter().filter(|one| !one.skipped).count();
    also.bytes_stored = copied.iter().map(|one| one.bytes_stored).sum();
    let last = copied.last().context("nothing was copied")?;
    if last.id != point.id {
        bail!("the point itself was not copied");
    }
    also.snapshot = Some(last.copy.clone());
    Ok(())
}

/// The point, after those of the guest that are newer than its newest in `target`. What was forgotten
/// there does not come back; the first time it is the point alone.
fn missing(
    source: &Repository,
    target: &Repository,
    vm: &str,
    point: &Snapshot,
) -> Result<Vec<Snapshot>> {
    let of_vm = |snapshot: &Snapshot| snapshot.tag("vm") == Some(vm);
    let there = target.snapshots()?.snapshots.into_iter();
    let newest = there.filter(of_vm).map(|s| s.time).max();
    let mut wanted: Vec<Snapshot> = match newest {
        Some(newest) => source
            .snapshots()?
            .snapshots
            .into_iter()
            .filter(|s| of_vm(s) && s.time > newest && s.time < point.time)
            .collect(),
        None => Vec::new(),
    };
    wanted.sort_by_key(|snapshot| snapshot.time);
    wanted.push(point.clone());
    Ok(wanted)
}
