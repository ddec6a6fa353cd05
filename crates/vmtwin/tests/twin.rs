//! Application-consistent backups: what the twin leaves, what becomes of the guest meanwhile, and
//! twins that do not end as they should.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_hypervisor::process::with_argument;
use vmtwin_testkit::{DiskFormat, DiskSpec, Ext4State, Guest, Mode, SmallTmpfs, assert_clean, run};

use common::{
    PATIENCE, VM, Vmtwin, assert_failure, assert_runs_soon, code, document, files,
    in_a_network_namespace, text, told,
};

/// Steps that only a backup by twin has.
const TWIN_STEPS: [&str; 5] = [
    "twin",
    "twin state",
    "twin resume",
    "twin end",
    "read finished disk0",
];

#[test]
fn a_finished_disk_is_closed_and_holds_every_acknowledged_line() {
    let guest = ledger_guest(&[]);
    let vmtwin = Vmtwin::with_guest(&guest);

    let before = last_acknowledged(&guest);
    let report = vmtwin.backup_as("application", &[]);
    assert_eq!(report["consistency"], "application");
    assert_eq!(report["twin"]["presses"], 1, "{report}");
    check_guest(&guest, &vmtwin);
    let disk = restored(&vmtwin, &report, "finished");
    assert!(disk.clean && disk.ended, "not closed: {disk:?}");
    disk.assert_holds(before);
    // The twin went on for a moment; the guest for much longer.
    let after = last_acknowledged(&guest);
    assert!((disk.lines.len() as u64) < after + 20);

    // The judge can tell: the same guest after a power cut needs its journal.
    let report = vmtwin.backup_as("crash", &[]);
    let disk = restored(&vmtwin, &report, "crashed");
    assert!(!disk.clean && !disk.ended, "{disk:?}");
    disk.assert_holds(after);

    // Application consistency is what a user gets who asks for nothing.
    let before = last_acknowledged(&guest);
    let report = document(&vmtwin.ok(&["backup", VM, "--json"]))[0].clone();
    assert_eq!(report["consistency"], "application");
    // It built on the disk of the power cut, and that on what the first twin left.
    assert_eq!(report["disks"][0]["read"], "changed", "{report}");
    let disk = restored(&vmtwin, &report, "incremental");
    assert!(disk.clean && disk.ended, "not closed: {disk:?}");
    disk.assert_holds(before);
    vmtwin.restic(&["check", "--read-data"]);
}

#[test]
fn a_twin_that_does_not_power_off_is_no_backup() {
    for (button, words) in [
        ("ignore", "had not powered off"),
        ("reboot", "restarted instead"),
        ("panic", "restarted instead"),
    ] {
        let guest = ledger_guest(&[&format!("vmtwin.button={button}")]);
        let vmtwin = Vmtwin::with_guest(&guest);
        let args = ["backup", VM, "--twin-deadline-s", "6"];
        let begun = Instant::now();
        vmtwin.fails(&args, &[VM, words]);
        assert!(begun.elapsed() < Duration::from_secs(60), "{button}");
        assert!(vmtwin.snapshots().is_empty(), "{button}");
        check_guest(&guest, &vmtwin);

        let before = last_acknowledged(&guest);
        let output = vmtwin.run(&[&args[..], &["--or", "crash", "--json"]].concat());
        assert_eq!(code(&output), 3, "{button}: {}", told(&output));
        let report = &document(&output)[0];
        assert_eq!(report["consistency"], "crash", "{button}");
        assert_eq!(report["consistency_asked"], "application", "{button}");
        let disk = restored(&vmtwin, report, "fallen-back");
        assert!(!disk.clean && !disk.ended, "{button}: {disk:?}");
        disk.assert_holds(before);
        check_guest(&guest, &vmtwin);
    }
}

/// A guest whose power button does nothing is shut down by what the user set for it.
#[test]
fn a_command_on_the_console_ends_a_twin() {
    let guest = ledger_guest(&["vmtwin.button=ignore"]);
    let vmtwin = Vmtwin::with_guest(&guest);
    let set = [
        "vm",
        "set",
        VM,
        "--twin-console",
        "power off",
        "--twin-deadline-s",
        "60",
    ];
    let shown = vmtwin.json(&set);
    assert_eq!(shown["settings"]["twin_console"], "power off");
    let before = last_acknowledged(&guest);
    let report = vmtwin.backup_as("application", &[]);
    let disk = restored(&vmtwin, &report, "finished");
    assert!(disk.clean && disk.ended, "not closed: {disk:?}");
    disk.assert_holds(before);
    check_guest(&guest, &vmtwin);
    let state = vmtwin.backup(&[]);
    let settled = vmtwin.json(&["settle", state["snapshot"].as_str().unwrap()]);
    assert_eq!(settled["consistency"], "application");

    // What a command says comes first; what is forgotten is not done.
    let other = [
        "backup",
        VM,
        "--twin-console",
        "hello",
        "--twin-deadline-s",
        "3",
    ];
    vmtwin.fails(&other, &["had not powered off"]);
    let keys = ["backup", VM, "--twin-keys", "no_such_key"];
    vmtwin.fails(&keys, &["no_such_key"]);
    let shown = vmtwin.json(&["vm", "set", VM, "--clear"]);
    assert_eq!(shown["settings"], Value::Null);
    vmtwin.fails(
        &["backup", VM, "--twin-deadline-s", "3"],
        &["had not powered off"],
    );
    check_guest(&guest, &vmtwin);
}

#[test]
fn a_backup_by_twin_may_end_at_any_step() {
    let guest = ledger_guest(&[]);
    let vmtwin = Vmtwin::with_guest(&guest);
    let list = vmtwin.path("steps");
    let mut command = vmtwin.command(&["backup", VM]);
    let output = command.env("VMTWIN_STEPS", &list).output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    let steps = std::fs::read_to_string(list).unwrap();
    for step in TWIN_STEPS {
        assert!(steps.lines().any(|line| line == step), "no {step}: {steps}");
        let output = backup_with(&vmtwin, step, "kill");
        assert_eq!(code(&output), -1, "{step}: {}", told(&output));
        assert_runs_soon(&guest, step);
        vmtwin.ok(&["recover"]);
        check_guest(&guest, &vmtwin);

        let output = backup_with(&vmtwin, step, "fail");
        assert_failure(&output, &[VM, &format!("failpoint '{step}'")]);
        check_guest(&guest, &vmtwin);

        let output = backup_with(&vmtwin, step, "interrupt");
        assert_failure(&output, &["cancelled"]);
        check_guest(&guest, &vmtwin);
    }
    assert_eq!(vmtwin.snapshots().len(), 1);
    let report = vmtwin.backup_as("application", &[]);
    assert!(restored(&vmtwin, &report, "finished").clean);
}

/// Its QEMU killed in mid-shutdown, and no space for what it writes: neither is a backup, and the
/// guest has no part in it.
#[test]
fn a_twin_that_breaks_is_no_backup() {
    let guest = ledger_guest(&["vmtwin.button=ignore"]);
    let vmtwin = Vmtwin::with_guest(&guest);
    let mut command = vmtwin.command(&["backup", VM]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let backup = command.spawn().unwrap();
    let twin = wait_for_twin(&vmtwin);
    check_row(&vmtwin);
    std::thread::sleep(Duration::from_secs(2));
    twin.kill(PATIENCE).unwrap();
    assert_failure(&backup.wait_with_output().unwrap(), &["QEMU ended"]);
    check_guest(&guest, &vmtwin);

    let Some(scratch) = SmallTmpfs::mount(2048) else {
        eprintln!("left out: no file system may be mounted");
        return;
    };
    let args = [
        "backup",
        VM,
        "--scratch",
        text(scratch.path()),
        "--twin-wait-s",
        "60",
    ];
    vmtwin.fails(&args, &[VM]);
    assert!(vmtwin.snapshots().is_empty());
    check_guest(&guest, &vmtwin);
}

/// A state that was stored is settled later, when the guest is long gone.
#[test]
fn a_stored_state_is_settled() {
    let guest = ledger_guest(&[]);
    let vmtwin = Vmtwin::with_guest(&guest);
    let before = last_acknowledged(&guest);
    let state = vmtwin.backup(&[]);
    let state = state["snapshot"].as_str().unwrap();
    guest.kill();

    let settled = vmtwin.json(&["settle", state]);
    assert_eq!(settled["consistency"], "application");
    assert_eq!(settled["settled_from"], state);
    let disk = restored(&vmtwin, &settled, "settled");
    assert!(disk.clean && disk.ended, "not closed: {disk:?}");
    disk.assert_holds(before);
    vmtwin.assert_nothing_left();
    assert!(twins(&vmtwin).is_empty());

    let id = settled["snapshot"].as_str().unwrap();
    let shown = vmtwin.json(&["snapshot", "show", id]);
    assert_eq!(shown["content"]["settled_from"], state);
    vmtwin.fails(&["settle", id], &["holds no memory"]);
    assert_eq!(vmtwin.snapshots().len(), 2);

    let mut command = vmtwin.command(&["settle", state]);
    command.env("VMTWIN_FAILPOINT", "twin end=kill");
    assert_eq!(code(&command.output().unwrap()), -1);
    vmtwin.ok(&["recover"]);
    vmtwin.assert_nothing_left();
    assert!(twins(&vmtwin).is_empty());
}

#[test]
fn snapshots_are_verified_by_reading_and_by_booting() {
    let guest = ledger_guest(&[]);
    let vmtwin = Vmtwin::with_guest(&guest);
    vmtwin.backup(&[]);
    let read = vmtwin.json(&["snapshot", "verify", "latest"]);
    assert_eq!(read["ok"], true);
    assert!(read["bytes"].as_u64().unwrap() > 1 << 20, "{read}");

    let boot = ["snapshot", "verify", "latest", "--boot", "--settle-s", "2"];
    let resumed = vmtwin.json(&boot);
    assert_eq!(resumed["sign"], "console", "{resumed}");
    vmtwin.backup_as("application", &[]);
    let booted = vmtwin.json(&[&boot[..], &["--expect", "ready mode=ext4"]].concat());
    assert_eq!(booted["sign"], "expected", "{booted}");
    let silent = ["--expect", "a word it never says", "--limit-s", "4"];
    vmtwin.fails(&[&boot[..], &silent].concat(), &["no sign of life"]);
    vmtwin.assert_nothing_left();
    assert!(twins(&vmtwin).is_empty());

    for pack in files(&vmtwin.repo().join("data")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, bytes).unwrap();
    }
    vmtwin.fails(&["snapshot", "verify", "latest"], &["NOT GOOD"]);
}

const MAC: &str = "52:54:00:76:6d:74";

/// The guest stands still, so that every frame from its address would be its twin's.
#[test]
fn no_frame_of_a_twin_reaches_any_interface() {
    if !in_a_network_namespace("no_frame_of_a_twin_reaches_any_interface") {
        return;
    }
    for command in [
        "link add br0 type bridge",
        "link set br0 up",
        "tuntap add dev tap0 mode tap",
        "link set tap0 master br0 up",
    ] {
        run(std::process::Command::new("ip").args(command.split(' ')));
    }
    let guest = Guest::builder()
        .mode(Mode::Ext4)
        .disks([DiskSpec::qcow2(64)])
        .kernel_args(["vmtwin.address=192.0.2.15/24"])
        .extra_args([
            "-netdev",
            "tap,id=net0,ifname=tap0,script=no,downscript=no",
            "-device",
            &format!("virtio-net-pci,netdev=net0,mac={MAC},romfile="),
        ])
        .start();
    let vmtwin = Vmtwin::with_guest(&guest);
    let frames = Frames::count(&vmtwin.path("frames"));
    frames.wait_for_some();
    guest.test_qmp().execute("stop", serde_json::json!({}));
    std::thread::sleep(Duration::from_secs(1));
    let before = frames.seen();
    let report = vmtwin.backup_as("application", &["--twin-wait-s", "5"]);
    assert_eq!(
        report["pause_ms"],
        Value::Null,
        "it was paused by its owner"
    );
    assert!(report["twin"]["run_s"].as_f64().unwrap() > 5.0);
    assert_eq!(frames.seen(), before, "the twin was heard");
    assert_eq!(guest.test_qmp().status(), "paused");
    // The counter still counts.
    guest.test_qmp().execute("cont", serde_json::json!({}));
    frames.wait_for_some();
}

/// Counts the frames from the guest's address on all interfaces.
struct Frames {
    tcpdump: std::process::Child,
    list: PathBuf,
}

impl Frames {
    fn count(list: &Path) -> Frames {
        let out = std::fs::File::create(list).unwrap();
        let mut command = std::process::Command::new("tcpdump");
        command.args(["-i", "any", "-n", "-e", "-l"]).stdout(out);
        Frames {
            tcpdump: command.stderr(Stdio::null()).spawn().expect("tcpdump"),
            list: list.to_owned(),
        }
    }

    fn seen(&self) -> usize {
        let text = std::fs::read_to_string(&self.list).unwrap();
        text.lines().filter(|line| line.contains(MAC)).count()
    }

    /// Waits until more frames come.
    fn wait_for_some(&self) {
        let (before, end) = (self.seen(), Instant::now() + PATIENCE);
        while self.seen() < before + 2 {
            assert!(Instant::now() < end, "no frame was counted");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// The table shows the twin, of whom it is, and where its disk was switched to.
fn check_row(vmtwin: &Vmtwin) {
    let table = vmtwin.json(&["vm", "list"]);
    let rows = table.as_array().unwrap();
    let guest = rows.iter().find(|row| row["role"] == "guest").unwrap();
    let twin = rows.iter().find(|row| row["role"] == "twin").unwrap();
    assert_eq!(twin["twin_of"], guest["id"]);
    let disk = &twin["disks"][0];
    assert_ne!(disk["switched_to"], guest["disks"][0]["address"]);
    assert!(
        disk["switched_to"]
            .as_str()
            .unwrap()
            .ends_with("disk0.qcow2")
    );
    assert!(disk["switched_at"].is_string());
}

/// A guest that writes a ledger on ext4, after some lines.
fn ledger_guest(kernel_args: &[&str]) -> Guest {
    let builder = Guest::builder()
        .mode(Mode::Ext4)
        .disks([DiskSpec::qcow2(64)]);
    let guest = builder.kernel_args(kernel_args.iter().copied()).start();
    guest.wait_for("ack n=20", PATIENCE);
    guest
}

fn last_acknowledged(guest: &Guest) -> u64 {
    *guest
        .log()
        .acknowledged()
        .last()
        .expect("an acknowledged line")
}

/// The guest goes on, and nothing is left of twin and backup.
fn check_guest(guest: &Guest, vmtwin: &Vmtwin) {
    let last = last_acknowledged(guest);
    let end = Instant::now() + PATIENCE;
    while last_acknowledged(guest) <= last {
        assert!(Instant::now() < end, "the guest stands still");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_clean(guest);
    vmtwin.assert_nothing_left();
    assert!(twins(vmtwin).is_empty(), "a twin is left");
    let table = vmtwin.json(&["vm", "list"]);
    assert_eq!(table.as_array().unwrap().len(), 1, "{table}");
}

fn twins(vmtwin: &Vmtwin) -> Vec<vmtwin_hypervisor::process::ProcessId> {
    with_argument(&vmtwin.home().join("run"))
}

fn wait_for_twin(vmtwin: &Vmtwin) -> vmtwin_hypervisor::process::ProcessId {
    let end = Instant::now() + PATIENCE;
    loop {
        let row_runs = |row: &Value| row["role"] == "twin" && row["state"] == "running";
        let table = vmtwin.json(&["vm", "list"]);
        if table.as_array().unwrap().iter().any(row_runs) {
            return *twins(vmtwin).first().expect("the twin's process");
        }
        assert!(Instant::now() < end, "no twin runs");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn backup_with(vmtwin: &Vmtwin, step: &str, action: &str) -> Output {
    eprintln!("{action} at {step}");
    let mut command = vmtwin.command(&["backup", VM]);
    command.env("VMTWIN_FAILPOINT", format!("{step}={action}"));
    command.output().unwrap()
}

/// What the first disk of a backup holds.
fn restored(vmtwin: &Vmtwin, report: &Value, to: &str) -> Ext4State {
    let id = report["snapshot"].as_str().expect("a snapshot");
    let dir: PathBuf = vmtwin.path(to);
    vmtwin.ok(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    Ext4State::read(Path::new(&dir).join("disk0.raw"), DiskFormat::Raw)
}
