//! What happens to a guest of libvirt while its backup is under way: the backup ends, says why, and
//! leaves nothing; the next one works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, LibvirtHost, Mode, all_tests_wanted, run};

use common::inside::{Inside, PATIENCE, URI};
use common::{code, programs_in, text, told};

const GUEST: &str = "ticker";

/// Begins a backup that dwells where it reads the first disk.
fn begin(inside: &Inside, consistency: &str) -> Child {
    let mut ours = inside.command(&["backup", GUEST, "--consistency", consistency]);
    ours.env("VMTWIN_FAILPOINT", "read virtio-disk0=sleep:4000");
    let ours = ours.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ours = ours.spawn().unwrap();
    inside.wait_for_export(GUEST);
    ours
}

fn assert_over(inside: &Inside, ours: Child, what: &str) {
    let output = ours.wait_with_output().unwrap();
    assert_eq!(code(&output), 1, "{what}: {}", told(&output));
    let said = told(&output);
    assert!(
        said.contains("ended while it was backed up"),
        "{what}: {said}"
    );
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert_nothing_left(inside, what);
}

fn assert_nothing_left(inside: &Inside, what: &str) {
    inside.vmtwin.assert_nothing_left();
    let begun = Instant::now();
    let left = || -> Vec<String> {
        let relays = programs_in(std::path::Path::new("libvirt-monitor"));
        let uuid = inside.host.virsh(&["domuuid", GUEST]);
        let of_this = relays.into_iter().filter(|line| line.contains(uuid.trim()));
        of_this.chain(programs_in(&inside.vmtwin.home())).collect()
    };
    while !left().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", left());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Starts the guest again, and backs it up: right, and with one bitmap of ours on each disk.
fn next_works(inside: &Inside, guest: &LibvirtGuest, what: &str) -> Value {
    if inside.host.virsh(&["domstate", GUEST]).trim() != "running" {
        inside.host.virsh(&["start", GUEST]);
    }
    guest.wait_for_more("n=", PATIENCE);
    let report = inside.compare_while_suspended_as(GUEST, what, &["qcow2", "qcow2"]);
    inside.assert_clean(guest);
    for disk in guest.disks() {
        let mut info = Command::new("qemu-img");
        info.args(["info", "-U", "--output=json"]);
        let said = String::from_utf8(run(info.arg(disk)).stdout).unwrap();
        assert!(said.matches("vmtwin-").count() <= 1, "{what}: {said}");
    }
    report
}

fn kill_qemu(host: &LibvirtHost) {
    let mut kill = host.command("sh");
    run(kill.args([
        "-c",
        &format!("kill -KILL $(cat /run/libvirt/qemu/{GUEST}.pid)"),
    ]));
}

/// Ends of the guest in mid-backup.
#[test]
fn a_guest_that_ends_ends_its_backup() {
    let Some(inside) = Inside::start("ends") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, GUEST, Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    inside.backup(GUEST, "crash");
    let host = &inside.host;
    let ends: [(&str, &str, &dyn Fn()); 3] = [
        ("killed", "crash", &|| kill_qemu(host)),
        ("destroyed", "state", &|| {
            host.virsh(&["destroy", GUEST]);
        }),
        ("powered off", "crash", &|| {
            host.virsh(&["shutdown", GUEST]);
        }),
    ];
    let count = if all_tests_wanted() { ends.len() } else { 1 };
    for (what, consistency, end) in &ends[..count] {
        let ours = begin(&inside, consistency);
        end();
        assert_over(&inside, ours, what);
        let report = next_works(&inside, &guest, what);
        // A bitmap lives through an end in order, and none other.
        let read = if *what == "killed" { "all" } else { "changed" };
        assert_eq!(report["disks"][0]["read"], read, "{what}: {report}");
    }
}

/// QEMU gives its disks up to nobody while our filters are on them: a save fails, the guest and the
/// backup go on, and libvirtd lives. Afterwards it works.
#[test]
fn a_guest_is_not_saved_during_a_backup() {
    let Some(inside) = Inside::start("saved") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, GUEST, Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let ours = begin(&inside, "crash");
    let refused = inside.host.try_virsh(&["managedsave", GUEST]);
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("Failed to save"), "{refused}");
    assert!(!refused.contains("Disconnected"), "{refused}");
    guest.wait_for_more("n=", PATIENCE);
    assert_done(ours);
    inside.assert_clean(&guest);
    inside.host.virsh(&["managedsave", GUEST]);
    next_works(&inside, &guest, "saved");
    if all_tests_wanted() {
        migrates_afterwards(&inside, &guest);
    }
}

/// The same for a migration to another host.
fn migrates_afterwards(inside: &Inside, guest: &LibvirtGuest) {
    let there = LibvirtHost::start("there");
    let migrate = || {
        let socket = there.file("migration.sock");
        let _ = std::fs::remove_file(&socket);
        let by = format!("unix://{}", text(&socket));
        inside.host.try_virsh(&[
            "migrate",
            "--live",
            "--p2p",
            "--unsafe",
            "--persistent",
            "--undefinesource",
            GUEST,
            &there.uri(),
            "--migrateuri",
            &by,
        ])
    };
    let ours = begin(inside, "crash");
    let refused = format!("{:#}", migrate().unwrap_err());
    assert!(refused.contains("migration failed"), "{refused}");
    guest.wait_for_more("n=", PATIENCE);
    assert_done(ours);
    inside.assert_clean(guest);
    migrate().unwrap();
    guest.wait_for_more("n=", PATIENCE);
    assert_eq!(there.virsh(&["domstate", GUEST]).trim(), "running");
    is_refused_as_gone(inside);
}

fn is_refused_as_gone(inside: &Inside) {
    let gone = inside.run(&["backup", GUEST, "--consistency", "crash"]);
    assert_eq!(code(&gone), 1, "{}", told(&gone));
    assert!(
        told(&gone).contains("undefined, or moved"),
        "{}",
        told(&gone)
    );
    inside.vmtwin.assert_nothing_left();
}

fn assert_done(ours: Child) {
    let output = ours.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
}

/// A definition that goes in mid-backup takes nothing away from a guest that runs.
#[test]
fn an_undefined_guest_is_backed_up_to_the_end() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("undefined") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, GUEST, Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let ours = begin(&inside, "state");
    inside.host.virsh(&["undefine", GUEST]);
    assert_done(ours);
    next_works(&inside, &guest, "undefined");
    inside.host.virsh(&["destroy", GUEST]);
    is_refused_as_gone(&inside);
}
