//! A real distribution with data bases under load: what its twin leaves is closed, and holds every
//! commit that was acknowledged before the point; what a crash-consistent backup holds is not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use vmtwin_testkit::debian::{self, Acks, Judgement, judge, last_ack};
use vmtwin_testkit::{Guest, GuestBuilder, assert_clean};

use common::{VM, Vmtwin, text};

/// Longest shutdown of this system under emulation on a busy host, seconds.
const DEADLINE: [&str; 2] = ["--twin-deadline-s", "240"];

#[test]
fn a_twin_closes_data_bases_that_a_crash_leaves_open() {
    let guest = debian::guest().start();
    let vmtwin = Vmtwin::with_guest(&guest);
    let before = acks(&guest);
    let since = Instant::now();
    let report = vmtwin.backup_as("application", &DEADLINE);
    describe(&guest, since, &report);
    let finished = judged(&vmtwin, &report, "finished");
    finished.assert_orderly();
    finished.assert_holds(before);
    assert_clean(&guest);
    vmtwin.assert_nothing_left();

    // The judges can tell: without a twin, data bases and file system need recovery.
    let before = acks(&guest);
    let report = vmtwin.backup_as("crash", &[]);
    let crashed = judged(&vmtwin, &report, "crashed");
    assert!(
        crashed.needs_recovery && crashed.pg_recovery_at_start,
        "{crashed:?}"
    );
    assert!(
        !crashed.pg_shutdown_logged && !crashed.sqlite_closed,
        "{crashed:?}"
    );
    assert_eq!(crashed.pg_state, "in production");
    crashed.assert_holds(before);
}

#[test]
#[ignore = "boots a Debian, and settles it later: minutes without KVM"]
fn a_stored_state_of_data_bases_is_settled() {
    let guest = debian::guest().start();
    let vmtwin = Vmtwin::with_guest(&guest);
    let before = acks(&guest);
    let report = vmtwin.backup(&[]);
    guest.kill();
    let id = report["snapshot"].as_str().unwrap();
    let settled = vmtwin.json(&[&["settle", id][..], &DEADLINE].concat());
    let finished = judged(&vmtwin, &settled, "settled");
    finished.assert_orderly();
    finished.assert_holds(before);
    let verify = ["snapshot", "verify", "latest", "--boot", "--expect"];
    vmtwin.ok(&[&verify[..], &["ready mode=debian"]].concat());
}

#[test]
#[ignore = "boots a Debian three times, which takes minutes without KVM"]
fn a_debian_that_does_not_power_off_is_no_backup() {
    for (words, more, said) in [
        (
            vec![debian::IGNORE_BUTTON],
            ["--twin-deadline-s", "20"],
            Some("had not powered off"),
        ),
        (
            vec![debian::PANIC_AT_SHUTDOWN, "panic=0"],
            ["--twin-deadline-s", "60"],
            Some("twin"),
        ),
        (vec![debian::BUSY], DEADLINE, None),
    ] {
        let guest = debian::guest().kernel_args(words).start();
        let vmtwin = Vmtwin::with_guest(&guest);
        let before = acks(&guest);
        let args = [&["backup", VM][..], &more].concat();
        match said {
            Some(words) => {
                vmtwin.fails(&args, &[VM, words]);
                assert!(vmtwin.snapshots().is_empty());
            }
            None => {
                let report = vmtwin.backup_as("application", &more);
                judged(&vmtwin, &report, "busy").assert_orderly();
            }
        }
        let after = acks(&guest);
        assert!(after.postgres > before.postgres, "the guest stands still");
        assert_clean(&guest);
        vmtwin.assert_nothing_left();
    }
}

/// A system that is deaf to its button is asked by its guest agent, where it happens to have one.
#[test]
#[ignore = "boots a Debian, and waits until its agent is asked: minutes without KVM"]
fn a_guest_agent_shuts_down_what_ignores_its_button() {
    let dir = tempfile::tempdir().unwrap();
    let guest = with_agent(
        dir.path(),
        debian::guest().kernel_args([debian::IGNORE_BUTTON]),
    );
    let vmtwin = Vmtwin::with_guest(&guest);
    let before = acks(&guest);
    let report = vmtwin.backup_as("application", &DEADLINE);
    assert_eq!(report["twin"]["agent"], true, "{report}");
    let finished = judged(&vmtwin, &report, "finished");
    finished.assert_orderly();
    finished.assert_holds(before);
    assert!(acks(&guest).postgres > before.postgres, "the guest ended");
    assert_clean(&guest);
    vmtwin.assert_nothing_left();

    // The console of a state speaks at once: it is to speak for longer than the agent takes.
    vmtwin.backup(&[]);
    let verify = [
        "snapshot",
        "verify",
        "latest",
        "--boot",
        "--settle-s",
        "120",
    ];
    assert_eq!(vmtwin.json(&verify)["sign"], "agent");
}

/// File systems need no journal's replay, and a guest whose backup is killed in between goes on.
#[test]
#[ignore = "boots a Debian: minutes without KVM"]
fn a_guest_agent_freezes_file_systems() {
    let dir = tempfile::tempdir().unwrap();
    let guest = with_agent(dir.path(), debian::guest());
    let vmtwin = Vmtwin::with_guest(&guest);
    let before = acks(&guest);
    let report = vmtwin.backup_as("filesystem", &[]);
    assert_eq!(report["consistency"], "filesystem");
    eprintln!(
        "frozen for {} ms, paused for {} ms",
        report["frozen_ms"], report["pause_ms"]
    );
    let judgement = judged(&vmtwin, &report, "frozen");
    assert!(!judgement.needs_recovery, "{judgement:?}");
    // Data bases are as after a power cut: nobody told them.
    assert!(judgement.pg_recovery_at_start, "{judgement:?}");
    judgement.assert_holds(before);

    for point in ["freeze", "frozen", "pause"] {
        let mut command = vmtwin.command(&["backup", VM, "--consistency", "filesystem"]);
        command.env("VMTWIN_FAILPOINT", format!("{point}=kill"));
        assert!(!command.status().unwrap().success());
        let at = acks(&guest);
        let end = Instant::now() + common::PATIENCE * 2;
        while acks(&guest).postgres <= at.postgres {
            assert!(
                Instant::now() < end,
                "killed at {point}: the guest stands still"
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        vmtwin.ok(&["recover"]);
    }
    assert_clean(&guest);
    vmtwin.assert_nothing_left();
}

/// Starts a guest with a port for its agent, whose socket is in `dir`.
fn with_agent(dir: &Path, guest: GuestBuilder) -> Guest {
    let socket = dir.join("qga");
    let args = [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &format!("socket,id=qga,path={},server=on,wait=off", text(&socket)),
        "-device",
        "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
    ];
    guest.extra_args(args).start()
}

/// What is acknowledged so far.
fn acks(guest: &Guest) -> Acks {
    last_ack(guest.log())
}

fn judged(vmtwin: &Vmtwin, report: &Value, to: &str) -> Judgement {
    let id = report["snapshot"].as_str().expect("a snapshot");
    let dir = vmtwin.path(to);
    vmtwin.ok(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    judge(dir.join("disk0.raw"))
}

/// For people who run this test: what the backup took, and what the guest felt.
fn describe(guest: &Guest, since: Instant, report: &Value) {
    eprintln!(
        "paused {} ms, longest gap {:.0} ms, twin {}, {} s in all",
        report["pause_ms"],
        guest.heartbeat().longest_gap_ms(since),
        report["twin"],
        report["seconds"]["total"]
    );
}
