//! A backup that ends at any of its steps: killed, failed, or interrupted by the user.
//!
//! Whatever the step, the guest runs on at once, nothing of the backup is left, no snapshot is
//! listed that cannot be restored, and the next backup works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Output;

use vmtwin_catalog::{Catalog, Job, JobState};
use vmtwin_testkit::{DiskLedger, Guest, assert_clean, assert_one_instant};

use common::{PATIENCE, VM, Vmtwin, assert_failure, assert_runs_soon, code, loaded_guest, told};

/// Steps that must be among those of a backup, so that none goes missing unseen.
const STEPS: [&str; 14] = [
    "lock",
    "folder",
    "scratch disk0",
    "filter disk0",
    "scratch disk1",
    "filter disk1",
    "memory settings",
    "pause",
    "resumed",
    "exports",
    "memory stream",
    "read disk0",
    "store memory",
    "snapshot",
];
/// The step after the snapshot was written: it stays.
const AFTER_SNAPSHOT: &str = "catalog";

#[test]
fn killed_at_any_step() {
    let (guest, vmtwin, steps) = start();
    let mut listed = 1;
    for step in &steps {
        let output = backup_with(&vmtwin, step, "kill");
        assert_eq!(code(&output), -1, "{step}: {}", told(&output));
        assert_runs_soon(&guest, step);
        vmtwin.ok(&["recover"]);
        check_clean(&guest, &vmtwin);
        listed += usize::from(step == AFTER_SNAPSHOT);
        assert_eq!(vmtwin.snapshots().len(), listed, "{step}");
    }
    finish(&guest, &vmtwin);
}

#[test]
fn failed_at_any_step() {
    let (guest, vmtwin, steps) = start();
    let mut listed = 1;
    for step in &steps {
        let output = backup_with(&vmtwin, step, "fail");
        let reason = format!("failpoint '{step}'");
        match step.as_str() {
            AFTER_SNAPSHOT => check_warned(&vmtwin, &output, &reason),
            _ => drop(assert_failure(&output, &[VM, &reason])),
        }
        assert_runs_soon(&guest, step);
        check_clean(&guest, &vmtwin);
        listed += usize::from(step == AFTER_SNAPSHOT);
        assert_eq!(vmtwin.snapshots().len(), listed, "{step}");
    }
    finish(&guest, &vmtwin);
}

#[test]
fn interrupted_at_any_step() {
    let (guest, vmtwin, steps) = start();
    let mut listed = 1;
    for step in &steps {
        let output = backup_with(&vmtwin, step, "interrupt");
        assert_runs_soon(&guest, step);
        check_clean(&guest, &vmtwin);
        if ["snapshot", AFTER_SNAPSHOT].contains(&step.as_str()) && code(&output) == 0 {
            listed += 1;
        } else {
            assert_failure(&output, &["cancelled"]);
        }
        assert_eq!(vmtwin.snapshots().len(), listed, "{step}");
    }
    finish(&guest, &vmtwin);
}

/// Nobody has to call `recover`: the next backup does it.
#[test]
fn the_next_backup_recovers_first() {
    let (guest, vmtwin, _) = start();
    for step in ["filter disk1", "pause", "resumed", "read disk0"] {
        let output = backup_with(&vmtwin, step, "kill");
        assert_eq!(code(&output), -1, "{step}: {}", told(&output));
        let output = vmtwin.ok(&["backup", VM, "--consistency", "state"]);
        assert!(told(&output).contains("recovered:"), "{}", told(&output));
        check_clean(&guest, &vmtwin);
    }
    finish(&guest, &vmtwin);
}

/// Recovery is killed between an undo and the note of it, at each; the next one does the rest.
#[test]
fn recovery_killed_at_any_step() {
    let (guest, vmtwin, _) = start();
    cut_off(&vmtwin, "read disk0");
    let list = vmtwin.path("recover-steps");
    let mut command = vmtwin.command(&["recover"]);
    let output = command.env("VMTWIN_STEPS", &list).output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    check_clean(&guest, &vmtwin);
    let steps = lines(&list);
    for known in ["recover exports", "recovered exports", "recovered folder"] {
        assert!(steps.iter().any(|s| s == known), "no {known} in {steps:?}");
    }
    let done = steps.iter().filter(|step| step.starts_with("recovered "));
    for step in done.chain([&steps[0]]) {
        kill_recovery(&guest, &vmtwin, "read disk0", step);
    }
    kill_recovery(&guest, &vmtwin, "pause", "recover pause");
    kill_recovery(&guest, &vmtwin, "pause", "recovered pause");
    finish(&guest, &vmtwin);
}

fn kill_recovery(guest: &Guest, vmtwin: &Vmtwin, backup_step: &str, step: &str) {
    cut_off(vmtwin, backup_step);
    let output = with_failpoint(vmtwin, &["recover"], step, "kill");
    assert_eq!(code(&output), -1, "{step}: {}", told(&output));
    assert_runs_soon(guest, step);
    vmtwin.ok(&["recover"]);
    check_clean(guest, vmtwin);
}

/// A backup that is killed at this step.
fn cut_off(vmtwin: &Vmtwin, step: &str) {
    let output = backup_with(vmtwin, step, "kill");
    assert_eq!(code(&output), -1, "{step}: {}", told(&output));
}

/// The snapshot is there and named; that the catalog could not note it is a warning, and the job
/// has ended well.
fn check_warned(vmtwin: &Vmtwin, output: &Output, reason: &str) {
    let told = told(output);
    assert_eq!(code(output), 3, "{told}");
    assert!(told.contains(reason), "{told}");
    let newest = vmtwin.snapshots().pop().unwrap();
    assert!(told.contains(&newest), "no {newest} in: {told}");
    assert_eq!(last_job(vmtwin).state, JobState::Done);
}

fn last_job(vmtwin: &Vmtwin) -> Job {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let path = vmtwin.home().join("catalog.db");
    let jobs = runtime.block_on(async {
        let catalog = Catalog::open(&path).await.unwrap();
        catalog.jobs(1).await.unwrap()
    });
    jobs.into_iter().next().expect("a job")
}

/// A guest, its table, and the steps of a good backup of it.
fn start() -> (Guest, Vmtwin, Vec<String>) {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let list = vmtwin.path("steps");
    let mut command = vmtwin.command(&["backup", VM, "--consistency", "state"]);
    let output = command.env("VMTWIN_STEPS", &list).output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    let steps = lines(&list);
    for known in STEPS.iter().chain([&AFTER_SNAPSHOT]) {
        assert!(steps.iter().any(|s| s == known), "no {known} in {steps:?}");
    }
    (guest, vmtwin, steps)
}

fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn backup_with(vmtwin: &Vmtwin, step: &str, action: &str) -> Output {
    with_failpoint(
        vmtwin,
        &["backup", VM, "--consistency", "state"],
        step,
        action,
    )
}

fn with_failpoint(vmtwin: &Vmtwin, args: &[&str], step: &str, action: &str) -> Output {
    eprintln!("{action} at {step}");
    let mut command = vmtwin.command(args);
    command.env("VMTWIN_FAILPOINT", format!("{step}={action}"));
    command.output().unwrap()
}

fn check_clean(guest: &Guest, vmtwin: &Vmtwin) {
    assert_clean(guest);
    vmtwin.assert_nothing_left();
    assert!(!vmtwin.resume_flag());
}

/// The guest was never harmed, the next backup works, and all that is listed can be restored.
fn finish(guest: &Guest, vmtwin: &Vmtwin) {
    guest.wait_for_next_tick(PATIENCE);
    guest.report().assert_whole();
    let id = vmtwin.backup(&[])["snapshot"].as_str().unwrap().to_owned();
    let all = vmtwin.snapshots();
    assert!(all.contains(&id));
    for (number, id) in all.iter().enumerate() {
        let disks: Vec<DiskLedger> = vmtwin.restored_ledgers(id, &format!("disks{number}"));
        assert_one_instant(None, &disks);
    }
    vmtwin.restic(&["check", "--read-data"]);
}
