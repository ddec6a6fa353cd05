//! A guest under load: backed up, judged by stock restic, killed, and started again from the point.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_testkit::{
    DiskLedger, Guest, Tick, all_tests_wanted, assert_clean, assert_one_instant, run,
};

use common::{PASSWORD, PATIENCE, Restored, VM, Vmtwin, files, loaded_guest, text};

/// The guest prints ten ticks a second at 200 numbers a second; the first one after the point
/// comes soon, also where the machine is busy.
const NUMBERS_UNTIL_FIRST_TICK: u64 = 400;

#[test]
fn a_killed_guest_goes_on_from_the_point() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    check_table(&vmtwin);

    let before = guest.last_tick();
    let report = vmtwin.backup(&["--tag", "gold"]);
    check_report(&report);
    let after = guest.wait_for_next_tick(PATIENCE);
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
    let id = report["snapshot"].as_str().unwrap();
    assert_eq!(vmtwin.snapshots(), [id]);
    // Kept by its tag, so nothing is forgotten.
    vmtwin.ok(&["snapshot", "forget", "--keep-tag", "gold"]);
    assert_eq!(vmtwin.snapshots(), [id]);

    restic_judges(&vmtwin, id);
    guest.kill();
    let disks = vmtwin.restored_ledgers(id, "disks");
    assert!(before.n <= disks[0].n && disks[0].n <= after.n);
    check_going_on(&vmtwin, id, "run", &disks);
}

#[test]
fn every_round_is_of_one_instant() {
    let rounds = if all_tests_wanted() { 50 } else { 5 };
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let mut last = 0;
    for round in 0..rounds {
        let since = guest.last_tick();
        let report = vmtwin.backup(&[]);
        let id = report["snapshot"].as_str().unwrap();
        let name = format!("round{round}");
        let disks = vmtwin.restored_ledgers(id, &name);
        assert!(disks[0].n >= since.n && disks[0].n > last, "an old point");
        last = disks[0].n;
        check_going_on(&vmtwin, id, &format!("{name}-run"), &disks);
        std::fs::remove_dir_all(vmtwin.path(&name)).unwrap();
        std::fs::remove_dir_all(vmtwin.path(&format!("{name}-run"))).unwrap();
        check_undisturbed(&guest);
    }
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
    assert_eq!(vmtwin.snapshots().len(), rounds);
    vmtwin.restic(&["check", "--read-data"]);
}

/// An independent reader of the point-in-time exports, while they are there and the guest writes,
/// sees what is restored later.
#[test]
fn what_is_restored_is_what_the_point_showed() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let mut command = vmtwin.command(&["backup", VM, "--consistency", "state"]);
    command.env("VMTWIN_FAILPOINT", "read disk0=sleep:6000");
    let mut backup = command.spawn().unwrap();
    let disks = ["disk0", "disk1"];
    for disk in disks {
        copy_export(&vmtwin, disk);
    }
    assert!(backup.wait().unwrap().success());
    let dir = vmtwin.path("restored");
    vmtwin.ok(&["restore", "latest", "--to", text(&dir), "--format", "raw"]);
    for disk in disks {
        let name = format!("{disk}.raw");
        compare(disk, &vmtwin.path(&name), &dir.join(&name));
    }
}

/// Copies what a backup exports of a disk, as soon as it does.
fn copy_export(vmtwin: &Vmtwin, disk: &str) {
    let end = Instant::now() + PATIENCE;
    let socket = loop {
        let found = files(&vmtwin.home().join("run"));
        if let Some(socket) = found.into_iter().find(|path| path.ends_with("nbd.sock")) {
            break socket;
        }
        assert!(Instant::now() < end, "nothing is exported");
        std::thread::sleep(Duration::from_millis(10));
    };
    let uri = format!("nbd+unix:///{disk}?socket={}", socket.display());
    let copy = vmtwin.path(&format!("{disk}.raw"));
    let mut convert = Command::new("qemu-img");
    convert
        .args(["convert", "-f", "raw", "-O", "raw", &uri])
        .arg(copy);
    while !convert.status().unwrap().success() {
        assert!(Instant::now() < end, "{disk} is not exported");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn compare(disk: &str, one: &Path, other: &Path) {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "raw"]);
    let output = run(compare.args([one, other]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("identical"), "{disk}: {said}");
}

fn check_table(vmtwin: &Vmtwin) {
    let table = vmtwin.json(&["vm", "list"]);
    assert_eq!(table.as_array().unwrap().len(), 1);
    assert_eq!(table[0]["name"], VM);
    assert_eq!(table[0]["state"], "running");
    assert_eq!(table[0]["resume_flag"], false);
    assert_eq!(table[0]["memory_bytes"], 256 << 20);
    let disks = table[0]["disks"].as_array().unwrap();
    let ids: Vec<&Value> = disks.iter().map(|disk| &disk["disk_id"]).collect();
    assert_eq!(ids, ["disk0", "disk1"]);
}

fn check_report(report: &Value) {
    assert_eq!(report["vm"], VM);
    assert_eq!(report["consistency"], "state");
    assert_eq!(report["error"], Value::Null);
    assert_eq!(report["point"]["method"], "boundary");
    let pause_ms = report["pause_ms"].as_f64().expect("a pause");
    assert!(pause_ms > 0.0 && pause_ms < 1500.0, "{pause_ms} ms");
    assert!(report["bytes_stored"].as_u64().unwrap() > 0);
}

/// The repository is whole, and restic reads the same disks as `vmtwin restore` gives.
fn restic_judges(vmtwin: &Vmtwin, id: &str) {
    vmtwin.restic(&["check", "--read-data"]);
    vmtwin.ok(&[
        "restore",
        id,
        "--to",
        text(&vmtwin.path("own")),
        "--format",
        "raw",
    ]);
    vmtwin.restic(&["restore", id, "--target", text(&vmtwin.path("stock"))]);
    for disk in ["disk0", "disk1"] {
        let joined = vmtwin.path(&format!("{disk}.joined"));
        join(&vmtwin.path("stock").join("disks").join(disk), &joined);
        let own = vmtwin.path("own").join(format!("{disk}.raw"));
        compare(disk, &joined, &own);
        let size = |path: &Path| path.metadata().unwrap().len();
        assert_eq!(size(&joined), size(&own), "sizes of {disk}");
    }
}

/// What `cat` of a disk's parts, in the order of their names, gives.
fn join(folder: &Path, to: &Path) {
    let mut parts = files(folder);
    parts.sort();
    assert!(!parts.is_empty(), "no parts in {}", folder.display());
    let mut out = std::fs::File::create(to).unwrap();
    for part in parts {
        std::io::copy(&mut std::fs::File::open(part).unwrap(), &mut out).unwrap();
    }
}

/// Starts the guest from the point: it never repeats, loses or mixes numbers.
fn check_going_on(vmtwin: &Vmtwin, id: &str, to: &str, disks: &[DiskLedger]) {
    assert_one_instant(None, disks);
    let dir = vmtwin.path(to);
    let report = vmtwin.json(&["restore", id, "--to", text(&dir), "--run"]);
    assert_eq!(report["running"]["run_state"], "running");
    let restored = Restored::of_report(&report);
    let environment = std::fs::read(format!("/proc/{}/environ", report["running"]["pid"])).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains(PASSWORD));
    let first = restored.log.wait_for_tick_after(0, PATIENCE);
    let later = restored.log.wait_for_tick_after(first.n, PATIENCE);
    let ticks = restored.log.ticks_since(0);
    let first = ticks[0];
    check_first(first, disks);
    assert!(later.n > first.n && later.guest_ms > first.guest_ms);
    check_no_skew(&ticks);
}

/// Memory is never behind a disk, and the guest went on from here, not from somewhere else.
fn check_first(first: Tick, disks: &[DiskLedger]) {
    for disk in disks {
        assert!(first.n >= disk.n, "memory {first:?} is behind {disk:?}");
        assert!(
            first.n <= disk.n + NUMBERS_UNTIL_FIRST_TICK,
            "memory {first:?} is ahead of {disk:?}"
        );
    }
}

fn check_no_skew(ticks: &[Tick]) {
    let torn: Vec<&Tick> = ticks.iter().filter(|tick| tick.skew > 0).collect();
    assert!(torn.is_empty(), "memory and disks differ: {torn:?}");
}

/// The guest that was backed up never saw anything of it.
fn check_undisturbed(guest: &Guest) {
    guest.wait_for_next_tick(PATIENCE);
    check_no_skew(&guest.log().ticks_since(0));
}
