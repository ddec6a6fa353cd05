//! Backups and restores that cannot work: they say why, leave nothing, and the guest runs on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use vmtwin_testkit::{Guest, ReadOnlyDir, SmallTmpfs, assert_clean, assert_one_instant, leftovers};

use common::{
    PATIENCE, VM, Vmtwin, assert_failure, assert_runs_soon, code, files, loaded_guest, text, told,
};

#[test]
fn stores_and_monitors_that_fail() {
    let guest = loaded_guest();
    store_full(&guest);
    store_read_only(&guest);
    let vmtwin = Vmtwin::with_guest(&guest);
    wrong_password(&vmtwin);
    unknown_guest(&vmtwin);
    monitor_busy(&vmtwin, &guest);
    monitor_dead(&vmtwin);
    check_unharmed(&guest, &vmtwin);
    assert!(vmtwin.snapshots().is_empty());
    spool_full(&vmtwin, &guest);
    catalog_full(&vmtwin, &guest);
    program_removed(&vmtwin);
    check_unharmed(&guest, &vmtwin);
    assert_eq!(vmtwin.snapshots().len(), 1);
}

#[test]
fn guests_in_other_states() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    disks_alone(&vmtwin, &guest);
    paused_by_its_owner(&vmtwin, &guest);
    scratch_full(&vmtwin, &guest);
    killed_in_mid_backup(&vmtwin, &guest);
}

#[test]
fn restores_that_fail() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.backup(&[]);
    overwrites_nothing(&vmtwin);
    damaged_repository(&vmtwin);
}

fn store_full(guest: &Guest) {
    let Some(store) = SmallTmpfs::mount(6 << 10) else {
        return;
    };
    let vmtwin = Vmtwin::with_repo(store.path().join("repo"));
    vmtwin.ok(&["init"]);
    vmtwin.add(guest);
    vmtwin.fails(&["backup", VM, "--consistency", "state"], &[VM, "space"]);
    check_unharmed(guest, &vmtwin);
    assert!(vmtwin.snapshots().is_empty());
}

fn store_read_only(guest: &Guest) {
    let folder = ReadOnlyDir::new(|path| {
        Vmtwin::with_repo(path.join("repo")).ok(&["init"]);
    });
    let Some(folder) = folder else { return };
    let vmtwin = Vmtwin::with_repo(folder.path().join("repo"));
    vmtwin.add(guest);
    let since = Instant::now();
    vmtwin.fails(&["backup", VM, "--consistency", "state"], &[VM, "ead-only"]);
    assert!(
        guest.test_qmp().pauses_ms(since).is_empty(),
        "paused for nothing"
    );
    check_unharmed(guest, &vmtwin);
}

fn wrong_password(vmtwin: &Vmtwin) {
    let mut command = vmtwin.command(&["backup", VM, "--consistency", "state"]);
    let output = command.env("VMTWIN_PASSWORD", "wrong").output().unwrap();
    assert_failure(&output, &[VM, "password"]);
}

fn unknown_guest(vmtwin: &Vmtwin) {
    vmtwin.fails(&["backup", "web99"], &["web99"]);
}

/// A monitor serves one client at a time.
fn monitor_busy(vmtwin: &Vmtwin, guest: &Guest) {
    let other = UnixStream::connect(guest.qmp_path()).unwrap();
    vmtwin.fails(
        &["backup", VM, "--consistency", "state"],
        &[VM, text(guest.qmp_path())],
    );
    drop(other);
}

/// A socket that nobody answers on, and one that is not there.
fn monitor_dead(vmtwin: &Vmtwin) {
    let socket = vmtwin.path("silent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let add = ["vm", "add", "web02", "--qmp", text(&socket)];
    vmtwin.fails(&add, &["web02", text(&socket)]);
    let missing = vmtwin.path("missing.sock");
    let add = ["vm", "add", "web02", "--qmp", text(&missing)];
    vmtwin.fails(&add, &["web02", text(&missing)]);
}

/// Memory finds no room on its way: the home folder's file system is full.
fn spool_full(vmtwin: &Vmtwin, guest: &Guest) {
    let Some(small) = SmallTmpfs::mount(8 << 10) else {
        return;
    };
    let home = small.path().join("home");
    let with_home = |args: &[&str]| vmtwin.run(&[args, &["--home", text(&home)]].concat());
    let added = with_home(&["vm", "add", VM, "--qmp", text(guest.qmp_path())]);
    assert_eq!(code(&added), 0, "{}", told(&added));
    let output = with_home(&[
        "backup",
        VM,
        "--consistency",
        "state",
        "--spool-memory-mib",
        "1",
    ]);
    // The spool or the catalog, whichever is the first to find no room.
    assert_failure(&output, &[VM]);
    assert!(files(&home.join("spool")).is_empty());
    assert!(files(&home.join("run")).is_empty());
    check_unharmed(guest, vmtwin);
    assert!(vmtwin.snapshots().is_empty());
}

/// No room for the catalog's next change: that is the reason given, and it works with room again.
fn catalog_full(vmtwin: &Vmtwin, guest: &Guest) {
    let Some(small) = SmallTmpfs::mount(2 << 10) else {
        return;
    };
    let home = small.path().join("home");
    let with_home = |args: &[&str]| vmtwin.run(&[args, &["--home", text(&home)]].concat());
    let added = with_home(&["vm", "add", VM, "--qmp", text(guest.qmp_path())]);
    assert_eq!(code(&added), 0, "{}", told(&added));
    small.fill();
    let output = with_home(&["backup", VM]);
    let catalog = home.join("catalog.db");
    assert_failure(
        &output,
        &["system is full", text(&catalog), "free some space"],
    );
    small.unfill();
    let listed = with_home(&["vm", "list"]);
    assert_eq!(code(&listed), 0, "{}", told(&listed));
    check_unharmed(guest, vmtwin);
    assert!(vmtwin.snapshots().is_empty());
}

/// A backup goes on while an upgrade takes the program's file away.
fn program_removed(vmtwin: &Vmtwin) {
    let program = vmtwin.path("vmtwin-old");
    std::fs::copy(env!("CARGO_BIN_EXE_vmtwin"), &program).unwrap();
    let steps = vmtwin.path("steps");
    let mut command = Command::new(&program);
    let same = vmtwin.command(&[]);
    let environment = same
        .get_envs()
        .filter_map(|(key, value)| Some((key, value?)));
    let child = command
        .args(["backup", VM, "--consistency", "state"])
        .envs(environment)
        .env("VMTWIN_STEPS", &steps)
        .env("VMTWIN_FAILPOINT", "lock=sleep:1000")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while !steps.exists() {
        assert!(Instant::now() < end, "no step was begun");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::remove_file(&program).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
}

/// The disks at one instant, and no memory.
fn disks_alone(vmtwin: &Vmtwin, guest: &Guest) {
    let report = vmtwin.backup_as("crash", &[]);
    assert_eq!(report["consistency"], "crash");
    assert_eq!(report["point"]["method"], "disks_only");
    let id = report["snapshot"].as_str().unwrap();
    let shown = vmtwin.json(&["snapshot", "show", id]);
    assert!(shown["content"]["memory"].is_null(), "{shown}");
    let listed = String::from_utf8(vmtwin.restic(&["ls", id]).stdout).unwrap();
    assert!(listed.contains("/disks/disk0"), "{listed}");
    assert!(!listed.contains("/memory"), "{listed}");
    assert_one_instant(None, &vmtwin.restored_ledgers(id, "crash"));
    check_unharmed(guest, vmtwin);
}

/// A guest that its owner paused is neither resumed nor spoilt.
fn paused_by_its_owner(vmtwin: &Vmtwin, guest: &Guest) {
    guest.test_qmp().execute("stop", json!({}));
    let since = Instant::now();
    let report = vmtwin.backup(&[]);
    assert!(report["pause_ms"].is_null(), "{report}");
    assert_eq!(report["point"]["method"], "not_running");
    assert_eq!(guest.test_qmp().status(), "paused");
    assert!(guest.test_qmp().events_named("RESUME", since).is_empty());
    let left = leftovers(guest);
    assert_eq!(left, ["the guest is paused"]);
    vmtwin.assert_nothing_left();
    let id = report["snapshot"].as_str().unwrap();
    assert_one_instant(None, &vmtwin.restored_ledgers(id, "paused"));
    guest.test_qmp().execute("cont", json!({}));
    check_unharmed(guest, vmtwin);
}

/// Copies of what the guest overwrites find no room: the backup may fail, the guest must not.
fn scratch_full(vmtwin: &Vmtwin, guest: &Guest) {
    let Some(scratch) = SmallTmpfs::mount(512) else {
        return;
    };
    let since = Instant::now();
    let before = vmtwin.snapshots();
    let mut command = vmtwin.command(&[
        "backup",
        VM,
        "--consistency",
        "state",
        "--scratch",
        text(scratch.path()),
    ]);
    let output = command
        .env("VMTWIN_FAILPOINT", "read disk0=sleep:4000")
        .output()
        .unwrap();
    let errors = guest.test_qmp().events_named("BLOCK_IO_ERROR", since);
    assert!(errors.is_empty(), "{errors:?}");
    assert_failure(&output, &[VM, "scratch"]);
    assert_eq!(vmtwin.snapshots(), before);
    assert!(files(scratch.path()).is_empty());
    check_unharmed(guest, vmtwin);
}

/// A guest whose host process dies while its disks are read.
fn killed_in_mid_backup(vmtwin: &Vmtwin, guest: &Guest) {
    let before = vmtwin.snapshots();
    let since = Instant::now();
    let backup = start_backup(vmtwin, "read disk0=sleep:3000");
    let exported = Instant::now() + PATIENCE;
    guest.test_qmp().wait_for_event("RESUME", since, PATIENCE);
    while guest.test_qmp().execute("query-block-exports", json!({})) == json!([]) {
        assert!(Instant::now() < exported, "no export");
        std::thread::sleep(Duration::from_millis(5));
    }
    guest.kill();
    let output = backup.wait_with_output().unwrap();
    assert_failure(&output, &[VM]);
    vmtwin.assert_nothing_left();
    assert_eq!(vmtwin.snapshots(), before);
    vmtwin.ok(&["recover"]);
    assert!(!vmtwin.resume_flag());
}

fn start_backup(vmtwin: &Vmtwin, failpoint: &str) -> Child {
    let mut command = vmtwin.command(&["backup", VM, "--consistency", "state"]);
    command
        .env("VMTWIN_FAILPOINT", failpoint)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn overwrites_nothing(vmtwin: &Vmtwin) {
    let dir = vmtwin.path("there");
    std::fs::create_dir(&dir).unwrap();
    let disk = dir.join("disk1.raw");
    std::fs::write(&disk, "precious").unwrap();
    let args = ["restore", "latest", "--to", text(&dir)];
    vmtwin.fails(&args, &[text(&disk), "--force"]);
    assert_eq!(std::fs::read(&disk).unwrap(), b"precious");
    assert_eq!(files(&dir), std::slice::from_ref(&disk));
    vmtwin.ok(&[&args[..], &["--force"]].concat());
    assert_eq!(disk.metadata().unwrap().len(), 32 << 20);
}

/// All packs cut short, and then with a bit of every page flipped: the restore fails and leaves
/// no file. With the packs as they were, it works again.
fn damaged_repository(vmtwin: &Vmtwin) {
    let packs = files(&vmtwin.repo().join("data"));
    assert!(!packs.is_empty());
    for (what, damage) in [
        (
            "cut",
            (|bytes| bytes.truncate(bytes.len() / 2)) as fn(&mut Vec<u8>),
        ),
        ("flip", |bytes| {
            for at in (100..bytes.len()).step_by(4096) {
                bytes[at] ^= 1;
            }
        }),
    ] {
        let whole: Vec<Vec<u8>> = packs.iter().map(|pack| damaged(pack, damage)).collect();
        let dir = vmtwin.path(what);
        let args = ["restore", "latest", "--to", text(&dir)];
        vmtwin.fails(&args, &[]);
        let left = files(&dir);
        assert!(left.is_empty(), "{what}: {left:?}");
        for (pack, bytes) in packs.iter().zip(whole) {
            replace(pack, &bytes);
        }
    }
    assert_one_instant(None, &vmtwin.restored_ledgers("latest", "whole"));
}

/// Damages a file; returns what it was.
fn damaged(path: &PathBuf, damage: fn(&mut Vec<u8>)) -> Vec<u8> {
    let whole = std::fs::read(path).unwrap();
    let mut bytes = whole.clone();
    damage(&mut bytes);
    replace(path, &bytes);
    whole
}

/// The files of a repository are read-only.
fn replace(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The guest runs and ticks on, memory and disks agree, nothing is left of the backup.
fn check_unharmed(guest: &Guest, vmtwin: &Vmtwin) {
    assert_runs_soon(guest, "after a failure");
    guest.wait_for_next_tick(PATIENCE);
    assert_clean(guest);
    vmtwin.assert_nothing_left();
    guest.report().assert_whole();
}
