//! Guests of libvirt: in the table, backed up, and nothing left that hinders libvirt afterwards.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use vmtwin_testkit::debian::{judge, last_ack};
use vmtwin_testkit::{LibvirtGuest, Mode, all_tests_wanted, assert_one_instant};

use common::inside::{Inside, PATIENCE, URI};
use common::{code, document, text, told};

/// One `vm add --libvirt` for all; then every consistency, incremental, and libvirt's own
/// operations after each.
#[test]
fn a_guest_of_libvirt_is_backed_up() {
    let Some(inside) = Inside::start("backups") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let row = inside.row("ticker").unwrap();
    let uuid = inside.host.virsh(&["domuuid", "ticker"]);
    assert_eq!(row["id"], uuid.trim());
    assert_eq!(row["state"], "running");
    assert_eq!(row["disks"].as_array().map(Vec::len), Some(2));

    let mut state = String::new();
    for consistency in ["state", "crash", "application"] {
        let report = inside.backup("ticker", consistency);
        assert_eq!(report["consistency"], consistency);
        let id = report["snapshot"].as_str().unwrap();
        let disks = inside.ledgers(id, consistency);
        if consistency == "state" {
            state = id.to_owned();
        }
        assert_eq!(disks.len(), 2);
        if consistency != "application" {
            assert_one_instant(None, &disks);
        }
        inside.assert_clean(&guest);
    }
    // It has the port, and nobody behind it.
    let frozen = ["backup", "ticker", "--consistency", "filesystem"];
    let refused = inside.run(&frozen);
    assert_eq!(code(&refused), 1);
    assert!(told(&refused).contains("guest agent"), "{}", told(&refused));
    let lesser = inside.run(&[&frozen[..], &["--or", "crash", "--json"]].concat());
    assert_eq!(code(&lesser), 3);
    assert_eq!(document(&lesser)[0]["consistency"], "crash");
    inside.vmtwin.restic(&["check", "--read-data"]);
    let settled = inside.json(&["settle", &state]);
    assert_eq!(settled["consistency"], "application", "{settled}");
    let booted = inside.json(&["snapshot", "verify", &state, "--boot"]);
    assert_eq!(booted["ok"], true, "{booted}");
    is_defined_again(&inside, uuid.trim());
}

/// By the agent whose socket libvirt holds; a backup that is killed in between lets the guest go on.
#[test]
#[ignore = "boots a Debian: minutes without KVM"]
fn file_systems_are_frozen_through_libvirt() {
    let Some(inside) = Inside::start("frozen") else {
        return;
    };
    let guest = LibvirtGuest::start_debian(&inside.host, "debian");
    inside.json(&["vm", "add", "--libvirt", URI]);
    let before = last_ack(guest.log());
    let report = inside.backup("debian", "filesystem");
    eprintln!(
        "frozen for {} ms, paused for {} ms",
        report["frozen_ms"], report["pause_ms"]
    );
    let dir = inside.vmtwin.path("frozen");
    let id = report["snapshot"].as_str().unwrap();
    inside.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    let judgement = judge(dir.join("virtio-disk0.raw"));
    assert!(!judgement.needs_recovery, "{judgement:?}");
    judgement.assert_holds(before);

    let mut killed = inside.command(&["backup", "debian", "--consistency", "filesystem"]);
    killed.env("VMTWIN_FAILPOINT", "frozen=kill");
    assert!(!killed.status().unwrap().success());
    guest.wait_for_more("ack n=", PATIENCE);
    inside.json(&["recover"]);
    inside.vmtwin.assert_nothing_left();
}

/// A copy beside the original, on the disks of the newest snapshot. It starts, and writes.
fn is_defined_again(inside: &Inside, uuid: &str) {
    let dir = inside.host.file("copy");
    let restore = ["restore", "latest", "--to", text(&dir), "--libvirt", URI];
    let refused = inside.run(&restore);
    assert_eq!(code(&refused), 1);
    assert!(told(&refused).contains("--as NAME"), "{}", told(&refused));
    assert!(!dir.exists());
    let report = inside.json(&[&restore[..], &["--as", "copy"]].concat());
    assert_eq!(report["domain"], "copy");
    let host = &inside.host;
    assert_ne!(host.virsh(&["domuuid", "copy"]).trim(), uuid);
    let disks = host.virsh(&["domblklist", "copy"]);
    assert_eq!(disks.matches(text(&dir)).count(), 2, "{disks}");
    host.virsh(&["start", "copy"]);
    let begun = Instant::now();
    let writes = || host.virsh(&["domblkstat", "copy", "vda"]);
    while !writes()
        .lines()
        .any(|l| l.contains("wr_req") && !l.ends_with(" 0"))
    {
        assert!(begun.elapsed() < PATIENCE, "{}", writes());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(host.virsh(&["domstate", "ticker"]).trim(), "running");
}

/// libvirt's own operations after a backup of ours, and a backup of ours after each.
#[test]
fn libvirts_own_operations_work_between_backups() {
    let Some(inside) = Inside::start("between") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "ticker", "--libvirt", URI]);
    inside.compare_while_suspended("ticker", "first");
    let copy = text(&inside.host.file("copy.qcow2")).to_owned();
    let saved = text(&inside.host.file("saved")).to_owned();
    let backup = inside.host.file("backup.xml");
    let target = inside.host.file("backup.qcow2");
    let xml = format!(
        "<domainbackup mode='push'><disks><disk name='vda' type='file'><driver type='qcow2'/>\
         <target file='{}'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>",
        target.display()
    );
    std::fs::write(&backup, xml).unwrap();
    let operations: [&[&[&str]]; 5] = [
        &[&[
            "snapshot-create-as",
            "ticker",
            "one",
            "--disk-only",
            "--no-metadata",
        ]],
        &[
            &[
                "blockcommit",
                "ticker",
                "vda",
                "--active",
                "--pivot",
                "--wait",
            ],
            &[
                "blockcommit",
                "ticker",
                "vdb",
                "--active",
                "--pivot",
                "--wait",
            ],
        ],
        &[&[
            "blockcopy",
            "ticker",
            "vda",
            "--dest",
            &copy,
            "--transient-job",
            "--wait",
            "--pivot",
        ]],
        &[&["backup-begin", "ticker", text(&backup)]],
        &[&["save", "ticker", &saved], &["restore", &saved]],
    ];
    // The first two show that an image that is not the earlier one is noticed.
    let count = if all_tests_wanted() {
        operations.len()
    } else {
        2
    };
    for operation in &operations[..count] {
        for command in *operation {
            let said = inside.host.try_virsh(command);
            assert!(said.is_ok(), "{command:?}: {said:?}");
        }
        inside.wait_for_no_job("ticker");
        let name = operation[0][0];
        let report = inside.backup("ticker", "state");
        if name == "snapshot-create-as" {
            let why = report["disks"][0]["why"].to_string();
            assert!(why.contains("its image was another"), "{report}");
        }
        let id = report["snapshot"].as_str().unwrap();
        assert_one_instant(None, &inside.ledgers(id, name));
        inside.assert_clean(&guest);
        inside.compare_while_suspended("ticker", name);
        inside.assert_clean(&guest);
    }
}

/// While a backup of ours reads: a snapshot by libvirt works, a backup by libvirt is refused or
/// works, and ours is what it was. While libvirt works, ours is refused.
#[test]
fn operations_at_the_same_time_work_or_are_refused() {
    let Some(inside) = Inside::start("beside") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "ticker", "--libvirt", URI]);
    let mut ours = inside.command(&["backup", "ticker", "--consistency", "crash", "--json"]);
    ours.env("VMTWIN_FAILPOINT", "read virtio-disk0=sleep:8000");
    let ours = ours.stdout(Stdio::piped()).spawn().unwrap();
    inside.wait_for_export("ticker");
    let snapshot = [
        "snapshot-create-as",
        "ticker",
        "one",
        "--disk-only",
        "--no-metadata",
    ];
    inside.host.virsh(&snapshot);
    let pull = inside.host.file("pull.xml");
    let server = inside.host.file("pull.sock");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
        server.display()
    );
    std::fs::write(&pull, xml).unwrap();
    let pulled = inside
        .host
        .try_virsh(&["backup-begin", "ticker", text(&pull)]);
    let said = format!("{:#}", pulled.unwrap_err());
    assert!(said.contains("NBD server already running"), "{said}");
    // A backup that libvirt writes by itself goes on beside ours.
    inside.host.virsh(&["backup-begin", "ticker"]);
    let output = ours.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    inside.wait_for_no_job("ticker");
    let report = document(&output)[0].clone();
    let disks = inside.ledgers(report["snapshot"].as_str().unwrap(), "beside");
    assert_one_instant(None, &disks);
    inside.assert_clean(&guest);

    inside.host.virsh(&["backup-begin", "ticker", text(&pull)]);
    let refused = inside.run(&["backup", "ticker", "--consistency", "crash"]);
    assert_eq!(code(&refused), 1);
    assert!(
        told(&refused).contains("backup job works on a disk"),
        "{}",
        told(&refused)
    );
    inside.host.virsh(&["domjobabort", "ticker"]);
    inside.wait_for_no_job("ticker");
    inside.backup("ticker", "crash");
    inside.assert_clean(&guest);
}

/// libvirtd is killed while a backup reads: the guest and the backup go on, and nothing is left.
#[test]
fn a_backup_outlives_libvirtd() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("outlives") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 1);
    inside.json(&["vm", "add", "ticker", "--libvirt", URI]);
    let mut ours = inside.command(&["backup", "ticker", "--consistency", "crash", "--json"]);
    ours.env("VMTWIN_FAILPOINT", "read virtio-disk0=sleep:4000");
    let ours = ours.stdout(Stdio::piped()).spawn().unwrap();
    inside.wait_for_export("ticker");
    inside.host.kill_libvirtd();
    std::thread::sleep(Duration::from_secs(6));
    inside.host.start_libvirtd();
    let output = ours.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    inside.assert_clean(&guest);
}

/// vmtwin is killed at steps of a backup, and libvirtd with it: the guest runs on, recovery says so
/// while libvirtd is gone, and undoes all once it is back.
#[test]
fn a_killed_backup_is_undone_through_libvirt() {
    let Some(inside) = Inside::start("undone") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "ticker", "--libvirt", URI]);
    let steps = ["exports", "files virtio-disk1", "pause", "resumed"];
    let count = if all_tests_wanted() { steps.len() } else { 1 };
    for step in &steps[..count] {
        let mut ours = inside.command(&["backup", "ticker", "--consistency", "state"]);
        let output = ours
            .env("VMTWIN_FAILPOINT", format!("{step}=kill"))
            .output()
            .unwrap();
        assert_ne!(code(&output), 0, "{step}");
        if *step == "exports" {
            inside.host.kill_libvirtd();
            let failed = inside.run(&["recover"]);
            assert_eq!(code(&failed), 1, "{}", told(&failed));
            inside.host.start_libvirtd();
        }
        guest.wait_for_more("n=", PATIENCE);
        inside.json(&["recover"]);
        inside.assert_clean(&guest);
    }
    inside.backup("ticker", "state");
    inside.assert_clean(&guest);
}

/// Prints how long guests stand still, by QEMU's own events; it judges nothing, since machines
/// differ: cargo test --release -p vmtwin --test libvirt pauses -- --ignored --nocapture
#[test]
#[ignore = "a measurement"]
fn pauses_beside_libvirts_own() {
    let Some(inside) = Inside::start("pauses") else {
        return;
    };
    let _guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "ticker", "--libvirt", URI]);
    let rounds = 15;
    for consistency in ["state", "crash"] {
        let pause = |_| {
            inside.backup("ticker", consistency)["pause_ms"]
                .as_f64()
                .unwrap()
        };
        print_sorted(consistency, (0..rounds).map(pause).collect());
    }
    let connection = vmtwin_libvirt::Connection::open(&inside.host.uri()).unwrap();
    let domain = connection.domain("ticker").unwrap();
    let memory = text(&inside.host.file("memory")).to_owned();
    let snapshot = |round: i32| {
        let events = domain.follow_monitor(None).unwrap();
        let (name, memory) = (format!("s{round}"), format!("{memory}{round}"));
        let mut command = vec![
            "snapshot-create-as",
            "ticker",
            &name,
            "--no-metadata",
            "--live",
        ];
        command.extend(["--memspec", &memory]);
        inside.host.virsh(&command);
        let (mut stopped, mut resumed) = (0, 0);
        while let Some(event) = events.next(Duration::from_millis(300)) {
            match event.name.as_str() {
                "STOP" => stopped = event.time_us,
                "RESUME" => resumed = event.time_us,
                _ => {}
            }
        }
        std::time::Duration::from_micros(resumed - stopped).as_secs_f64() * 1000.0
    };
    print_sorted("snapshot --memspec --live", (0..5).map(snapshot).collect());
}

fn print_sorted(what: &str, mut pauses_ms: Vec<f64>) {
    pauses_ms.sort_by(f64::total_cmp);
    let (first, last) = (pauses_ms[0], pauses_ms[pauses_ms.len() - 1]);
    let median = pauses_ms[pauses_ms.len() / 2];
    eprintln!("{what}: median {median:.1} ms, {first:.1} to {last:.1}");
}

/// A domain that is defined later is there by itself; names and states follow libvirt's.
#[test]
fn the_table_follows_libvirt() {
    let Some(inside) = Inside::start("table") else {
        return;
    };
    inside.json(&["vm", "add", "--libvirt", URI]);
    assert!(inside.row("later").is_none());
    LibvirtGuest::define(&inside.host, "later", Mode::Count, 1);
    let row = inside.row("later").unwrap();
    assert_eq!(row["state"], "stopped");
    inside.host.virsh(&["domrename", "later", "renamed"]);
    let renamed = inside.row("renamed").unwrap();
    assert_eq!(renamed["id"], row["id"]);
    assert!(inside.row("later").is_none());
    let refused = inside.run(&["vm", "remove", "renamed"]);
    assert_eq!(code(&refused), 1);
    assert!(
        told(&refused).contains("vm remove --libvirt"),
        "{}",
        told(&refused)
    );
    inside.json(&["vm", "remove", "--libvirt", URI]);
    assert!(inside.row("renamed").is_none());
    let far = inside.run(&["vm", "add", "--libvirt", "qemu+ssh://far/system"]);
    assert!(
        told(&far).contains("run vmtwin where the guests are"),
        "{}",
        told(&far)
    );
}

/// libvirtd is killed while the guest is paused, and vmtwin with its guard as well: the guest goes
/// on as soon as libvirtd is back.
#[test]
fn a_paused_guest_goes_on_when_libvirtd_is_back() {
    let Some(inside) = Inside::start("killed") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Count, 1);
    let uuid = inside.host.virsh(&["domuuid", "ticker"]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut relay = inside.command(&["libvirt-monitor", URI, uuid.trim()]);
    let mut relay = relay
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut &ours, b"{\"execute\":\"stop\",\"id\":1}\n").unwrap();
    let begun = Instant::now();
    while inside.host.virsh(&["domstate", "ticker"]).trim() != "paused" {
        assert!(begun.elapsed() < PATIENCE, "not paused");
    }
    inside.host.kill_libvirtd();
    drop(ours);
    std::thread::sleep(Duration::from_secs(1));
    inside.host.start_libvirtd();
    guest.wait_for_more("count n=", PATIENCE);
    assert!(relay.wait().unwrap().success());
    inside.assert_clean(&guest);
}
