//! Guests with more than disks and memory: UEFI variables and a TPM come back with them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_testkit::{DiskSpec, Guest, Mode, assert_clean};

use common::{PATIENCE, Restored, Vmtwin, assert_failure, code, programs_in, text, told};

/// What the emulator calls a TPM's state.
const TPM_STATE: &str = "tpm2-00.permall";

#[test]
fn variables_and_tpm_come_back() {
    let guest = Guest::builder()
        .mode(Mode::Load)
        .disks([DiskSpec::raw(16)])
        .uefi(true)
        .tpm()
        .start();
    let vmtwin = Vmtwin::with_guest(&guest);
    let report = vmtwin.backup(&[]);
    assert_eq!(report["consistency"], "state");
    assert_clean(&guest);
    let id = report["snapshot"].as_str().unwrap();
    by_twin(&guest, &vmtwin);
    let last = guest.last_tick().n;
    guest.kill();
    wait_until("the emulator ended", || {
        let mut programs = programs_in(guest.folder()).into_iter();
        !programs.any(|line| line.starts_with("swtpm"))
    });

    let settled = vmtwin.json(&["settle", id]);
    assert_eq!(settled["consistency"], "application");
    vmtwin.assert_nothing_left();
    without_emulator(&vmtwin, id);
    cut_off(&vmtwin, id);
    let dir = vmtwin.path("run");
    let report = vmtwin.json(&["restore", id, "--run", "--to", text(&dir)]);
    assert_eq!(report["warnings"], json!([]), "{report}");
    let restored = Restored::of_report(&report);
    assert!(restored.log.wait_for_tick_after(0, PATIENCE).n > 0);
    restored.log.wait_for_tick_after(last, PATIENCE);
    check_variables(&guest, &report);
    check_tpm(&guest, &dir);

    drop(restored);
    wait_until("the emulator ends with its guest", || {
        programs_in(&dir).is_empty()
    });
}

/// Firmware and TPM of a twin are its own; the guest's emulator goes on.
fn by_twin(guest: &Guest, vmtwin: &Vmtwin) {
    for failpoint in ["twin state=kill", "twin resume=kill"] {
        let mut command = vmtwin.command(&["backup", common::VM]);
        let output = command.env("VMTWIN_FAILPOINT", failpoint).output().unwrap();
        assert_eq!(code(&output), -1, "{failpoint}: {}", told(&output));
        vmtwin.ok(&["recover"]);
        assert!(programs_in(&vmtwin.home()).is_empty(), "{failpoint}");
    }
    let report = vmtwin.backup_as("application", &[]);
    assert_eq!(report["consistency"], "application");
    assert_clean(guest);
    vmtwin.assert_nothing_left();
    assert!(programs_in(&vmtwin.home()).is_empty());
    let of_guest = programs_in(guest.folder());
    let mut tpms = of_guest.iter().filter(|line| line.starts_with("swtpm"));
    assert!(
        tpms.next().is_some() && tpms.next().is_none(),
        "{of_guest:#?}"
    );
}

/// It is said before anything is written, and what to install.
fn without_emulator(vmtwin: &Vmtwin, id: &str) {
    let (dir, bin) = (vmtwin.path("none"), vmtwin.path("bin"));
    std::fs::create_dir(&bin).unwrap();
    let mut command = vmtwin.command(&["restore", id, "--run", "--to", text(&dir)]);
    let output = command.env("PATH", &bin).output().unwrap();
    assert_failure(&output, &["swtpm could not be run", "package swtpm"]);
    assert!(!dir.exists());
}

/// The emulator goes with a restore that is killed or fails, with and without QEMU, and its files do.
fn cut_off(vmtwin: &Vmtwin, id: &str) {
    let dir = vmtwin.path("cut");
    for failpoint in ["qemu=kill", "resume=kill", "qemu=fail", "resume=fail"] {
        let mut command = vmtwin.command(&["restore", id, "--run", "--to", text(&dir)]);
        let output = command.env("VMTWIN_FAILPOINT", failpoint).output().unwrap();
        assert_ne!(code(&output), 0, "{failpoint}: {}", told(&output));
        wait_until(failpoint, || !dir.exists() && programs_in(&dir).is_empty());
    }
}

/// The variable store is a disk of the snapshot, byte for byte; the firmware's code is not.
fn check_variables(guest: &Guest, report: &Value) {
    let disks = report["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 2, "{report}");
    let flash = disks
        .iter()
        .find(|disk| disk["id"].as_str().unwrap().contains("flash"))
        .expect("a restored variable store");
    let restored = std::fs::read(flash["path"].as_str().unwrap()).unwrap();
    let original = std::fs::read(guest.folder().join("uefi-vars.fd")).unwrap();
    assert!(restored.iter().any(|byte| *byte != 0));
    assert!(restored == original, "the variables differ");
}

/// QEMU has a TPM, and its emulator keeps the state that the guest's had.
fn check_tpm(guest: &Guest, dir: &Path) {
    let mut qmp = Qmp::connect(&dir.join("qmp.sock"), PATIENCE).unwrap();
    let tpms = qmp.execute("query-tpm", Value::Null).unwrap();
    assert_eq!(tpms[0]["id"], "tpm0", "{tpms}");
    assert_eq!(tpms[0]["options"]["type"], "emulator", "{tpms}");
    let state = |path: PathBuf| std::fs::read(path).unwrap();
    let original = state(guest.folder().join("tpm").join(TPM_STATE));
    assert!(original.len() > 1000);
    assert!(state(dir.join("files").join(TPM_STATE)) == original);
    let running = programs_in(dir);
    assert_eq!(running.len(), 2, "QEMU and its TPM: {running:?}");
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
