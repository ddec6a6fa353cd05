//! Tiny guests do what the other crates' tests rely on: they tick, notice when
//! memory and disks are of different instants, and obey the power button.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use vmtwin_testkit::{
    DiskFormat, DiskLedger, DiskSpec, Ext4State, Guest, Log, Mode, Qmp, Workdir, assert_clean,
    assert_one_instant, leftovers, run,
};

const WAIT: Duration = Duration::from_secs(60);

fn two_disks() -> [DiskSpec; 2] {
    [DiskSpec::qcow2(64), DiskSpec::raw(32)]
}

#[test]
fn a_guest_ticks_reports_and_powers_off() {
    let started = Instant::now();
    let guest = Guest::builder().disks(two_disks()).mode(Mode::Load).start();
    println!("booted in {:.1} s", started.elapsed().as_secs_f64());

    let since = Instant::now();
    let first = guest.wait_for_next_tick(WAIT);
    let later = guest.wait_for_next_tick(WAIT);
    assert!(later.n > first.n, "{first:?} {later:?}");
    let report = guest.report();
    assert_eq!(report.disks.len(), 2);
    assert!(report.pages > 0);
    report.assert_whole();
    std::thread::sleep(Duration::from_secs(1));
    let gap = guest.heartbeat().longest_gap_ms(since);
    assert!(guest.heartbeat_gaps_ms(since).len() > 20);
    assert!(gap > 0.0);
    println!("longest heartbeat gap {gap:.1} ms, {:?}", guest.last_tick());
    assert_clean(&guest);

    guest.power_off(WAIT);
    let stopped = guest.wait_for("stopped n=", WAIT);
    let disks = [
        DiskLedger::read(guest.disk_path(0, "qcow2"), DiskFormat::Qcow2),
        DiskLedger::read(guest.disk_path(1, "raw"), DiskFormat::Raw),
    ];
    assert!(disks.iter().all(|disk| disk.clean), "{disks:?}");
    assert_eq!(stopped, format!("stopped n={}", disks[0].n));
    assert_one_instant(Some(disks[0].n), &disks);
}

#[test]
fn a_killed_guest_leaves_disks_of_one_instant_and_goes_on() {
    let work = Workdir::new();
    let disk = work.join("a.qcow2");
    vmtwin_testkit::make_disk(&disk, DiskFormat::Qcow2, 64).unwrap();
    let spec = || [DiskSpec::existing(&disk, DiskFormat::Qcow2)];
    let guest = Guest::builder()
        .disks(spec())
        .mode(Mode::Count)
        .old_style_drives()
        .start();
    let folder = guest.folder().to_owned();
    guest.log().wait_for_tick_after(10, WAIT);
    guest.kill();
    assert!(!guest.is_running());
    drop(guest);
    assert!(!folder.exists() || std::env::var_os("VMTWIN_TEST_KEEP").is_some());

    let ledger = DiskLedger::read(&disk, DiskFormat::Qcow2);
    assert!(ledger.n > 10 && !ledger.clean, "{ledger:?}");
    ledger.assert_whole();
    let again = Guest::builder().disks(spec()).mode(Mode::Count).start();
    again.wait_for(&format!("first={}", ledger.n + 1), WAIT);
    assert_eq!(again.wait_for_next_tick(WAIT).skew, 0);
}

#[test]
fn an_ext4_guest_keeps_what_it_acknowledged() {
    let guest = Guest::builder()
        .disks([DiskSpec::raw(64)])
        .mode(Mode::Ext4)
        .start();
    guest.wait_for("ack n=20", WAIT);
    let crashed = Ext4State::read(guest.disk_path(0, "raw"), DiskFormat::Raw);
    assert!(!crashed.clean && !crashed.ended, "{crashed:?}");
    guest.power_off(WAIT);
    let state = Ext4State::read(guest.disk_path(0, "raw"), DiskFormat::Raw);
    assert!(
        state.clean && state.ended,
        "{state:?}\n{}",
        guest.log().text()
    );
    state.assert_holds(*guest.log().acknowledged().last().unwrap());
}

/// Saves the guest's memory, with the guest left paused.
fn save_memory(guest: &Guest, file: &Path) {
    let qmp = guest.test_qmp();
    qmp.execute("stop", json!({}));
    qmp.execute(
        "migrate",
        json!({"uri": format!("file:{}", file.display())}),
    );
    let end = Instant::now() + WAIT;
    while qmp.execute("query-migrate", json!({}))["status"] != "completed" {
        assert!(Instant::now() < end, "the migration does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A guest that goes on from a memory that was saved while it was paused.
fn resumed_on(disk: &Path, memory: &Path) -> Guest {
    let guest = Guest::builder()
        .disks([DiskSpec::existing(disk, DiskFormat::Raw)])
        .mode(Mode::Load)
        .incoming(format!("file:{}", memory.display()))
        .start();
    let end = Instant::now() + WAIT;
    while guest.test_qmp().status() == "inmigrate" {
        assert!(Instant::now() < end, "the stream does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    guest.test_qmp().execute("cont", json!({}));
    guest
}

#[test]
fn memory_and_disk_of_two_instants_are_noticed() {
    let work = Workdir::new();
    let memory = work.join("memory");
    let [early, same, late] = ["early.raw", "same.raw", "late.raw"].map(|name| work.join(name));
    let guest = Guest::builder()
        .disks([DiskSpec::raw(32)])
        .mode(Mode::Load)
        .start();
    guest.wait_for_next_tick(WAIT);
    run(Command::new("cp")
        .arg(guest.disk_path(0, "raw"))
        .arg(&early));
    guest.wait_for_next_tick(WAIT);
    guest.wait_for_next_tick(WAIT);
    save_memory(&guest, &memory);
    run(Command::new("cp").arg(guest.disk_path(0, "raw")).arg(&same));
    guest.test_qmp().execute("cont", json!({}));
    guest.wait_for_next_tick(WAIT);
    guest.wait_for_next_tick(WAIT);
    guest.kill();
    run(Command::new("cp").arg(guest.disk_path(0, "raw")).arg(&late));

    let whole = resumed_on(&same, &memory);
    whole.wait_for_next_tick(WAIT);
    whole.report().assert_whole();
    drop(whole);
    for torn in [resumed_on(&late, &memory), resumed_on(&early, &memory)] {
        torn.wait_for_next_tick(WAIT);
        assert!(torn.report().skew > 0, "{}", torn.log().text());
    }
}

#[test]
fn a_paused_guest_is_measured_and_leftovers_are_named() {
    let guest = Guest::builder().network(true).mode(Mode::Idle).start();
    let qmp = guest.test_qmp();
    std::thread::sleep(Duration::from_millis(200));
    let since = Instant::now();
    std::thread::sleep(Duration::from_millis(100));
    qmp.execute("stop", json!({}));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(leftovers(&guest), ["the guest is paused"]);
    qmp.execute("cont", json!({}));
    std::thread::sleep(Duration::from_millis(300));
    assert!(guest.heartbeat().longest_gap_ms(since) >= 290.0);
    assert!(qmp.pauses_ms(since)[0] >= 290.0);
    assert_eq!(qmp.events_named("RESUME", since).len(), 1);

    let node = json!({"driver": "null-co", "node-name": "vmtwin-left", "read-zeroes": true});
    qmp.execute("blockdev-add", node);
    assert_eq!(leftovers(&guest), ["block node vmtwin-left (null-co)"]);
}

#[test]
fn a_uefi_guest_boots() {
    let guest = Guest::builder().uefi(true).mode(Mode::Idle).start();
    let nodes = guest
        .test_qmp()
        .execute("query-named-block-nodes", json!({}));
    assert!(nodes.to_string().contains("uefi-vars"));
}

#[test]
fn a_guest_that_cannot_start_says_why() {
    let error = Guest::builder()
        .extra_args(["-device", "no-such-device"])
        .try_start();
    let text = format!("{:#}", error.unwrap_err());
    assert!(text.contains("no-such-device"), "{text}");
}

#[test]
fn the_program_starts_a_guest_in_the_background() {
    let work = Workdir::new();
    let (disk, qmp, serial) = (
        work.join("a.qcow2"),
        work.join("qmp"),
        work.join("serial.log"),
    );
    let output = run(Command::new(env!("CARGO_BIN_EXE_vmtwin-test-guest"))
        .args(["--memory", "256", "--daemonize"])
        .args([Path::new("--disk"), &disk, Path::new("--qmp"), &qmp])
        .args([Path::new("--serial"), &serial]));
    let pid: u32 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    Log::new(&serial).wait_for("count n=", WAIT);
    Qmp::connect(&qmp).unwrap().execute("quit", json!({}));
    let end = Instant::now() + WAIT;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < end, "the guest does not quit");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(DiskLedger::read(&disk, DiskFormat::Qcow2).n > 0);
}
