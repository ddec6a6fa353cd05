//! Standby twins: what becomes of them when their guest dies, ends, or is left alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::process::{ProcessId, with_argument};
use vmtwin_testkit::{DiskSpec, Guest, Log, Mode, assert_clean, run};

use common::{PATIENCE, VM, Vmtwin, assert_runs_soon, code, in_a_network_namespace, loaded_guest};

const TWIN: &str = "web01-twin";

#[test]
fn a_standby_goes_on_where_its_guest_died() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let _end = EndAll(&vmtwin);
    let before = guest.last_tick();
    start(&vmtwin, &[]);
    let after = guest.wait_for_next_tick(PATIENCE);
    // The guest goes on, writes all over its disks, and is not disturbed.
    std::thread::sleep(Duration::from_secs(3));
    guest.report().assert_whole();
    let list = vmtwin.json(&["twin", "list"]);
    assert_eq!(list[0]["vm"], VM);
    assert!(list[0]["age_s"].as_f64().unwrap() > 3.0);

    let died = Instant::now();
    guest.kill();
    let promoted = Promoted::wait(&vmtwin);
    let tick = promoted.log.wait_for_tick_after(0, PATIENCE);
    eprintln!(
        "first tick {} ms after the guest died",
        died.elapsed().as_millis()
    );
    assert!(
        tick.n >= before.n && tick.n <= after.n + 400,
        "{tick:?} is not the point"
    );
    // The ticker reads its disks again and compares them with its memory.
    let later = promoted.log.wait_for_tick_after(tick.n + 200, PATIENCE);
    let ticks = promoted.log.ticks_since(0);
    assert!(ticks.iter().all(|tick| tick.skew == 0), "torn: {later:?}");

    // It is the VM of the table now, and can be backed up as such.
    let report = vmtwin.backup(&[]);
    assert_eq!(report["consistency"], "state");
    let table = vmtwin.json(&["vm", "list"]);
    assert_eq!(table.as_array().unwrap().len(), 1, "{table}");
    vmtwin.assert_nothing_left();
}

#[test]
fn the_network_answers_again() {
    if !in_a_network_namespace("the_network_answers_again") {
        return;
    }
    for command in [
        "link add br0 type bridge",
        "addr add 192.0.2.2/24 dev br0",
        "link set br0 up",
        "tuntap add dev tap0 mode tap",
        "link set tap0 master br0 up",
    ] {
        run(Command::new("ip").args(command.split(' ')));
    }
    let guest = Guest::builder()
        .mode(Mode::Load)
        .disks([DiskSpec::qcow2(48)])
        .kernel_args(["vmtwin.address=192.0.2.15/24"])
        .extra_args([
            "-netdev",
            "tap,id=net0,ifname=tap0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=net0,mac=52:54:00:76:6d:75,romfile=",
        ])
        .start();
    wait_for_answer("the guest");
    let vmtwin = Vmtwin::with_guest(&guest);
    let _end = EndAll(&vmtwin);
    start(&vmtwin, &[]);
    let died = Instant::now();
    guest.kill();
    assert!(!answers(), "somebody else has the address");
    wait_for_answer("its twin");
    eprintln!(
        "answers {} ms after the guest died",
        died.elapsed().as_millis()
    );
    drop(Promoted::wait(&vmtwin));
}

#[test]
fn a_standby_is_removed_without_a_trace() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let _end = EndAll(&vmtwin);
    start(&vmtwin, &[]);
    vmtwin.fails(&["backup", VM], &[VM]);
    vmtwin.fails(&["twin", "promote", TWIN], &["still runs"]);
    vmtwin.fails(
        &["twin", "start", VM, "--standby"],
        &["standby of this name"],
    );
    vmtwin.ok(&["twin", "stop", TWIN]);
    check_gone(&guest, &vmtwin);

    start(&vmtwin, &[]);
    let socket = vmtwin
        .home()
        .join("standby")
        .join(TWIN)
        .join("control.sock");
    let keeper = keeper(&vmtwin);
    keeper.kill(PATIENCE).unwrap();
    assert_runs_soon(&guest, "keeper killed");
    vmtwin.ok(&["recover"]);
    assert!(!socket.exists());
    check_gone(&guest, &vmtwin);

    for step in ["storage", "standby state", "standby watch"] {
        let mut command = vmtwin.command(&["twin", "start", VM, "--standby"]);
        command.env("VMTWIN_FAILPOINT", format!("{step}=fail"));
        let output = command.output().unwrap();
        assert_eq!(code(&output), 1, "{step}");
        check_gone(&guest, &vmtwin);
    }

    // An orderly end is no failure.
    start(&vmtwin, &[]);
    guest.power_off(PATIENCE);
    let end = Instant::now() + PATIENCE;
    while !twins(&vmtwin).is_empty() || vmtwin.home().join("standby").join(TWIN).exists() {
        assert!(Instant::now() < end, "the standby is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(vmtwin.json(&["twin", "list"]), json!([]));
}

#[test]
fn no_promotion_without_fencing() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let _end = EndAll(&vmtwin);
    let fenced = vmtwin.path("fenced");
    let fence = format!("test -e {}", fenced.display());
    start(&vmtwin, &["--fence", &fence]);
    guest.kill();
    let end = Instant::now() + PATIENCE;
    while vmtwin.json(&["twin", "list"])[0]["state"] != "failed" {
        assert!(Instant::now() < end, "the failure was not seen");
        std::thread::sleep(Duration::from_millis(50));
    }
    vmtwin.fails(&["twin", "promote", TWIN], &["fencing failed"]);
    std::fs::write(&fenced, "").unwrap();
    vmtwin.ok(&["twin", "promote", TWIN]);
    let promoted = Promoted::wait(&vmtwin);
    promoted.log.wait_for_tick_after(0, PATIENCE);
}

/// Ends whatever a failed test leaves of its standbys.
struct EndAll<'a>(&'a Vmtwin);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        for process in twins(self.0) {
            let _ = process.kill(PATIENCE);
        }
    }
}

fn start(vmtwin: &Vmtwin, more: &[&str]) -> Value {
    let args = [&["twin", "start", VM, "--standby"], more].concat();
    let status = vmtwin.json(&args);
    assert_eq!(status["state"], "standby");
    assert!(status["pause_ms"].as_f64().unwrap() > 0.0);
    status
}

/// A twin that took its guest's place. It ends with this value.
struct Promoted {
    qemu: ProcessId,
    log: Log,
}

impl Promoted {
    fn wait(vmtwin: &Vmtwin) -> Promoted {
        let dir = vmtwin.home().join("standby").join(TWIN);
        let socket = dir.join("twin.sock").display().to_string();
        let end = Instant::now() + PATIENCE;
        while vmtwin.json(&["vm", "list"])[0]["connection"]["address"] != socket.as_str() {
            assert!(Instant::now() < end, "the twin was not promoted");
            std::thread::sleep(Duration::from_millis(50));
        }
        Promoted {
            qemu: qemu_on(&dir.join("twin.sock")),
            log: Log::new(dir.join("twin-console.log")),
        }
    }
}

impl Drop for Promoted {
    fn drop(&mut self) {
        let _ = self.qemu.kill(PATIENCE);
    }
}

fn qemu_on(socket: &Path) -> ProcessId {
    *with_argument(socket).first().expect("the twin's process")
}

fn twins(vmtwin: &Vmtwin) -> Vec<ProcessId> {
    with_argument(&vmtwin.home().join("standby"))
}

/// The process that watches for this home folder.
fn keeper(vmtwin: &Vmtwin) -> ProcessId {
    let home = format!("VMTWIN_HOME={}\0", vmtwin.home().display());
    let watches = |process: &&ProcessId| {
        let environment = std::fs::read(format!("/proc/{}/environ", process.pid));
        environment.is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&home))
    };
    let staying = with_argument(Path::new("--foreground"));
    *staying.iter().find(watches).expect("a keeper")
}

fn check_gone(guest: &Guest, vmtwin: &Vmtwin) {
    assert_runs_soon(guest, "without its standby");
    guest.wait_for_next_tick(PATIENCE);
    assert_clean(guest);
    vmtwin.assert_nothing_left();
    assert!(twins(vmtwin).is_empty(), "a process is left");
    assert!(!vmtwin.home().join("standby").join(TWIN).exists());
    let table = vmtwin.json(&["vm", "list"]);
    assert_eq!(table.as_array().unwrap().len(), 1, "{table}");
    guest.report().assert_whole();
}

fn answers() -> bool {
    let mut ping = Command::new("ping");
    ping.args(["-c", "1", "-W", "1", "-q", "192.0.2.15"]);
    ping.output().expect("ping").status.success()
}

fn wait_for_answer(of: &str) {
    let end = Instant::now() + PATIENCE;
    while !answers() {
        assert!(Instant::now() < end, "{of} does not answer");
    }
}
