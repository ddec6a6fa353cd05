//! Recovery: finds what a crash left and undoes it.
//!
//! Three sources, from the surest to the last resort: the journal (every undo that was registered
//! and not applied), the guests' own block graphs (nodes and exports that bear our names), and the
//! file system (work folders, stale locks in the repository). What a live job uses is left alone.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_catalog::{Job, Outcome, Step, Vm, VmId, VmRole};
use vmtwin_hypervisor::process::with_argument;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::undo::{Undo, sweep};

use crate::backup::{CONNECT_TIMEOUT, Cx, job_tag};
use crate::cluster::place::{Here, Place};
use crate::failpoint;
use crate::libvirt::monitor_of;

/// What was found and done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RecoverReport {
    /// What was undone, in words.
    pub(crate) undone: Vec<String>,
    /// What could not be undone, and why.
    pub(crate) failed: Vec<String>,
}

/// Undoes what the journal says of jobs whose process is gone. Done at every start.
pub(crate) fn dead_jobs(cx: &Cx<'_>) -> Result<RecoverReport> {
    let report = undo_dead_jobs(cx)?;
    for line in &report.undone {
        cx.ui.note(&format!("recovered: {line}"));
    }
    if !report.failed.is_empty() {
        bail!(
            "an earlier job could not be undone: {}",
            report.failed.join("; ")
        );
    }
    Ok(report)
}

fn undo_dead_jobs(cx: &Cx<'_>) -> Result<RecoverReport> {
    let mut report = RecoverReport::default();
    let dead = cx.db.run(async |c| c.dead_jobs().await)?;
    for job in &dead {
        undo_job(cx, job, &mut report)?;
    }
    if !dead.is_empty() {
        drop_twin_rows(cx, &live_jobs(cx)?, &mut report)?;
    }
    Ok(report)
}

fn undo_job(cx: &Cx<'_>, job: &Job, report: &mut RecoverReport) -> Result<()> {
    match cx.db.run(async |c| c.adopt_job(&job.id).await) {
        Ok(_) => {}
        // Another process recovers it.
        Err(vmtwin_catalog::Error::Busy { .. } | vmtwin_catalog::Error::Ended { .. }) => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let steps = cx.db.run(async |c| c.open_steps(&job.id).await)?;
    let mut failed = Vec::new();
    for step in &steps {
        match undo_step(cx, job, step) {
            Ok(text) => report.undone.push(text),
            Err(error) => failed.push(format!("{}: {error:#}", step.name)),
        }
    }
    if failed.is_empty() {
        cx.db
            .run(async |c| c.finish_job(&job.id, Outcome::Undone, None).await)?;
    } else {
        let text = failed.join("; ");
        cx.db.run(async |c| c.note_error(&job.id, &text).await)?;
        report.failed.extend(failed);
    }
    Ok(())
}

fn undo_step(cx: &Cx<'_>, job: &Job, step: &Step) -> Result<String> {
    failpoint::pass(&format!("recover {}", step.name))?;
    let undo: Undo = serde_json::from_value(step.undo.clone())
        .context("the journal holds an undo that this version does not know")?;
    undo.apply()?;
    failpoint::pass(&format!("recovered {}", step.name))?;
    match (&undo, &job.vm_id) {
        // The flag of a guest that moved meanwhile may be another node's by now.
        (Undo::Resume { .. }, Some(vm)) if is_here(cx, vm)? => {
            cx.db.run(async |c| c.record_resume(vm, step.id).await)?;
        }
        _ => cx.db.run(async |c| c.mark_undone(step.id).await)?,
    }
    Ok(undo.describe())
}

fn is_here(cx: &Cx<'_>, vm: &VmId) -> Result<bool> {
    let vm = cx.db.run(async |c| c.vm(vm).await)?;
    let place = Here::of(cx.home, cx.db)?.place(&vm);
    Ok(matches!(place, Place::Here | Place::Nowhere))
}

/// The whole recovery, by hand.
pub(crate) fn run(cx: &Cx<'_>) -> Result<RecoverReport> {
    let mut report = undo_dead_jobs(cx)?;
    let live = live_jobs(cx)?;
    drop_twin_rows(cx, &live, &mut report)?;
    let here = Here::of(cx.home, cx.db)?;
    for vm in cx.db.run(async |c| c.vms().await)? {
        if here.place(&vm) != Place::Here {
            continue;
        }
        let held = live.iter().any(|j| j.vm_id.as_ref() == Some(&vm.id));
        if !held && vm.role == VmRole::Guest {
            sweep_guest(&vm, &mut report);
        }
    }
    sweep_folders(cx, &live, &mut report)?;
    sweep_locks(cx, &mut report);
    Ok(report)
}

/// Rows of twins that are gone, and that no live job is about to start.
fn drop_twin_rows(cx: &Cx<'_>, live: &[Job], report: &mut RecoverReport) -> Result<()> {
    let held = |vm: &Vm| live.iter().any(|job| job.vm_id == vm.twin_of);
    let here = Here::of(cx.home, cx.db)?;
    let ours = |vm: &Vm| matches!(here.place(vm), Place::Here | Place::Nowhere);
    for vm in cx.db.run(async |c| c.vms().await)? {
        let socket = Path::new(&vm.connection.address);
        if vm.role == VmRole::Twin && ours(&vm) && !held(&vm) && with_argument(socket).is_empty() {
            cx.db.run(async |c| c.remove_vm(&vm.id).await)?;
            report
                .undone
                .push(format!("remove the row of twin {}", vm.name));
        }
    }
    Ok(())
}

fn live_jobs(cx: &Cx<'_>) -> Result<Vec<Job>> {
    Ok(cx.db.run(async |c| c.running_jobs().await)?)
}

fn sweep_guest(vm: &Vm, report: &mut RecoverReport) {
    let Ok(mut qmp) = Qmp::connect(&monitor_of(vm), CONNECT_TIMEOUT) else {
        return;
    };
    match sweep(&mut qmp) {
        Ok(found) => report
            .undone
            .extend(found.into_iter().map(|f| format!("{}: {f}", vm.name))),
        Err(error) => report.failed.push(format!("{}: {error}", vm.name)),
    }
}

/// Work folders are named after their job.
fn sweep_folders(cx: &Cx<'_>, live: &[Job], report: &mut RecoverReport) -> Result<()> {
    let tags: HashSet<String> = live.iter().map(|j| job_tag(&j.id)).collect();
    for entry in std::fs::read_dir(cx.home.run_dir()?)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_tag = name.len() == 8 && name.chars().all(|c| c.is_ascii_hexdigit());
        if is_tag && !tags.contains(&name) {
            let undo = Undo::DeletePath { path: entry.path() };
            match undo.apply() {
                Ok(()) => report.undone.push(undo.describe()),
                Err(error) => report.failed.push(error.to_string()),
            }
        }
    }
    Ok(())
}

/// Locks of ours whose process is gone. A repository that can't be opened is not recovery's job.
fn sweep_locks(cx: &Cx<'_>, report: &mut RecoverReport) {
    let Ok(repository) = cx.home.repository() else {
        return;
    };
    match repository.remove_stale_locks() {
        Ok(0) => {}
        Ok(count) => report
            .undone
            .push(format!("remove {count} stale locks of the repository")),
        Err(error) => report.failed.push(format!("stale locks: {error}")),
    }
}
