//! A restore that ends at any of its steps: killed, or failed.
//!
//! Whatever the step, no QEMU runs, nothing of the restore is left, what it was to replace is there
//! again, and the next restore into the same folder works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use common::{
    PATIENCE, Restored, Vmtwin, assert_failure, code, files, loaded_guest, programs_in, text, told,
};
use serde_json::Value;

/// Steps that must be among those of a restore, so that none goes missing unseen.
const STEPS: [&str; 8] = [
    "folder",
    "disk disk0",
    "disk disk1",
    "publish",
    "start",
    "state",
    "resume",
    "keep",
];

#[test]
fn a_restore_that_is_cut_off_leaves_nothing() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.backup(&[]);
    drop(guest);
    let case = Case::new(&vmtwin);
    let steps = case.steps();
    for step in &steps {
        let output = case.restore_with(step, "kill", &[]);
        assert_eq!(code(&output), -1, "{step}: {}", told(&output));
        case.wait_until_clean(step);
        let output = case.restore_with(step, "fail", &[]);
        assert_failure(&output, &[&format!("failpoint '{step}'")]);
        case.wait_until_clean(step);
    }
    let restored = Restored::of_report(&case.restore(&[]));
    restored.log.wait_for_tick_after(0, PATIENCE);
    drop(restored);
    what_was_replaced_returns(&case, &steps);
}

/// The folder holds a guest of an earlier restore, which has ended.
fn what_was_replaced_returns(case: &Case<'_>, steps: &[String]) {
    let disks = ["disk0.qcow2", "disk1.raw"].map(|name| case.dir.join(name));
    std::fs::remove_file(case.dir.join("qmp.sock")).unwrap();
    let before = sorted_files(&case.dir);
    for disk in &disks {
        std::fs::write(disk, "precious").unwrap();
    }
    for step in steps {
        let output = case.restore_with(step, "kill", &["--force"]);
        assert_eq!(code(&output), -1, "{step}: {}", told(&output));
        case.wait_until(step, || {
            let old = disks.iter().all(|disk| is_precious(disk));
            let now = sorted_files(&case.dir);
            match old && now == before {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        });
    }
    drop(Restored::of_report(&case.restore(&["--force"])));
    assert!(!disks.iter().any(|disk| is_precious(disk)));
}

fn sorted_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = files(dir);
    found.sort();
    found
}

fn is_precious(disk: &Path) -> bool {
    disk.metadata().is_ok_and(|found| found.len() == 8)
}

/// Restores of one snapshot into one folder.
struct Case<'a> {
    vmtwin: &'a Vmtwin,
    /// In a folder that the restore has to make as well.
    dir: PathBuf,
    /// Where programs keep what is nobody's business.
    temp: PathBuf,
}

impl Case<'_> {
    fn new(vmtwin: &Vmtwin) -> Case<'_> {
        let temp = vmtwin.path("temp");
        std::fs::create_dir(&temp).unwrap();
        Case {
            vmtwin,
            dir: vmtwin.path("made/back"),
            temp,
        }
    }

    fn arguments<'b>(&'b self, more: &[&'b str]) -> Vec<&'b str> {
        let args = ["restore", "latest", "--run", "--to", text(&self.dir)];
        [&args, more].concat()
    }

    fn restore(&self, more: &[&str]) -> Value {
        self.vmtwin.json(&self.arguments(more))
    }

    /// The steps of a good restore, which is removed again.
    fn steps(&self) -> Vec<String> {
        let list = self.vmtwin.path("steps");
        let mut command = self.vmtwin.command(&self.arguments(&["--json"]));
        let output = command.env("VMTWIN_STEPS", &list).output().unwrap();
        assert_eq!(code(&output), 0, "{}", told(&output));
        drop(Restored::of_report(&common::document(&output)));
        std::fs::remove_dir_all(self.vmtwin.path("made")).unwrap();
        let text = std::fs::read_to_string(list).unwrap();
        let steps: Vec<String> = text.lines().map(str::to_owned).collect();
        for known in STEPS {
            assert!(steps.iter().any(|s| s == known), "no {known} in {steps:?}");
        }
        steps
    }

    fn restore_with(&self, step: &str, action: &str, more: &[&str]) -> Output {
        eprintln!("{action} at {step}");
        let mut command = self.vmtwin.command(&self.arguments(more));
        command.env("VMTWIN_FAILPOINT", format!("{step}={action}"));
        command.env("TMPDIR", &self.temp);
        command.output().unwrap()
    }

    fn wait_until_clean(&self, step: &str) {
        self.wait_until(step, || match self.vmtwin.path("made").exists() {
            true => Err(format!("left: {:?}", files(&self.vmtwin.path("made")))),
            false => Ok(()),
        });
    }

    /// Waits until no program works in the folder, and `done` says that all is well.
    fn wait_until(&self, step: &str, done: impl Fn() -> Result<(), String>) {
        let end = Instant::now() + Duration::from_secs(10);
        let state = || {
            let running = programs_in(&self.dir);
            match running.is_empty() {
                true => done(),
                false => Err(format!("running: {running:?}")),
            }
        };
        while let Err(why) = state() {
            assert!(Instant::now() < end, "{step}: {why}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let left: Vec<_> = std::fs::read_dir(&self.temp).unwrap().collect();
        assert!(left.is_empty(), "{step}: {left:?}");
    }
}
