//! Guests of libvirt that go on from their state as domains: beside the original, cut off, and in
//! its place.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, Mode, run};

use common::inside::{BRIDGE, CARD, Inside, PATIENCE, URI};
use common::{code, text, told};

/// A guest that is on a bridge of its host.
fn guest_on_a_bridge(inside: &Inside) -> LibvirtGuest {
    inside.make_bridge();
    let guest = LibvirtGuest::define_with(&inside.host, "ticker", Mode::Load, 2, CARD);
    guest.boot(&inside.host, Mode::Load);
    guest
}

fn is_up(card: &Value) -> bool {
    card["flags"].as_array().unwrap().contains(&"UP".into())
}

/// The first number that a domain shows on its console, which is a pty.
fn first_number(inside: &Inside, domain: &str) -> u64 {
    first_number_if_any(inside, domain).unwrap()
}

fn first_number_if_any(inside: &Inside, domain: &str) -> Option<u64> {
    let console = inside.host.virsh(&["ttyconsole", domain]);
    let mut read = inside.host.command("timeout");
    let output = read.args(["5", "cat", console.trim()]).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = shown.lines().filter_map(|line| {
        let rest = line.split_once("tick n=")?.1;
        rest.split(' ').next()?.parse().ok()
    });
    numbers.next()
}

impl Inside {
    /// A file of the host.
    fn read(&self, path: &str) -> Vec<u8> {
        run(self.host.command("cat").arg(path)).stdout
    }

    /// The state of a domain's TPM.
    fn tpm_of(&self, domain: &str) -> Vec<u8> {
        let uuid = self.host.virsh(&["domuuid", domain]);
        let uuid = uuid.trim();
        self.read(&format!(
            "/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
        ))
    }
}

/// A copy goes on beside the original, cut off; killed in between, nothing runs; and the original
/// goes back to its place.
#[test]
fn a_state_goes_on_as_a_domain() {
    let Some(inside) = Inside::start("goeson") else {
        return;
    };
    let host = &inside.host;
    let guest = guest_on_a_bridge(&inside);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let uuid = host.virsh(&["domuuid", "ticker"]);
    let before = guest.log().last_tick().unwrap().n;
    let report = inside.backup("ticker", "state");
    let id = report["snapshot"].as_str().unwrap();

    copy_beside(&inside, id, before, &guest);

    // The original is gone, and comes back.
    host.virsh(&["destroy", "ticker"]);
    host.virsh(&["undefine", "ticker"]);
    let (last, mark) = (guest.log().last_tick().unwrap().n, guest.log().mark());
    let dir = host.file("back");
    let back = ["restore", id, "--to", text(&dir), "--libvirt", URI, "--run"];
    let report = inside.json(&[&back[..], &["--network", "original"]].concat());
    assert_eq!(report["domain"], "ticker");
    assert_eq!(host.virsh(&["domuuid", "ticker"]), uuid);
    guest.log().wait_for_since(mark, "tick n=", PATIENCE);
    let first = guest.log().ticks_since(mark)[0].n;
    assert!((before..last).contains(&first), "{before} {first} {last}");
    let card = inside.card("ticker");
    assert_eq!(card["master"], BRIDGE);
    assert!(is_up(&card), "{card}");
    assert_eq!(guest.log().last_tick().unwrap().skew, 0);
    inside.assert_clean(&guest);
    let again = inside.backup("ticker", "crash");
    assert_eq!(again["consistency"], "crash");
    cut_off_in_between(&inside, id);
    inside.vmtwin.assert_no_files_left();
}

fn copy_beside(inside: &Inside, id: &str, before: u64, guest: &LibvirtGuest) {
    let dir = inside.host.file("copy");
    let copy = ["restore", id, "--to", text(&dir), "--libvirt", URI, "--run"];
    let refused = inside.run(&copy);
    assert_eq!(code(&refused), 1);
    assert!(told(&refused).contains("--as NAME"), "{}", told(&refused));
    let report = inside.json(&[&copy[..], &["--as", "copy"]].concat());
    assert_eq!(report["domain"], "copy");
    let host = &inside.host;
    assert_eq!(host.virsh(&["domstate", "copy"]).trim(), "running");
    let first = first_number(inside, "copy");
    let now = guest.log().last_tick().unwrap().n;
    assert!((before..now).contains(&first), "{before} {first} {now}");
    let card = inside.card("copy");
    assert_eq!(card["master"], Value::Null);
    assert!(!is_up(&card), "{card}");
    assert_eq!(host.virsh(&["domstate", "ticker"]).trim(), "running");
    host.virsh(&["destroy", "copy"]);
    host.virsh(&["undefine", "copy"]);
}

/// A restore that fails, and one that is killed, while the state goes in.
fn cut_off_in_between(inside: &Inside, id: &str) {
    let host = &inside.host;
    for action in ["fail", "kill"] {
        let dir = host.file(action);
        let mut restore = inside.command(&["restore", id, "--to", text(&dir), "--as", action]);
        restore.args(["--libvirt", URI, "--run"]);
        restore.env("VMTWIN_FAILPOINT", format!("domain state={action}"));
        let output = restore.output().unwrap();
        assert_ne!(code(&output), 0);
        let begun = Instant::now();
        let lives = || {
            let state = host.try_virsh(&["domstate", action]);
            state.is_ok_and(|state| state.trim() != "shut off")
        };
        while lives() {
            assert!(begun.elapsed() < PATIENCE, "{action}: {}", told(&output));
            std::thread::sleep(Duration::from_millis(100));
        }
        if action == "fail" {
            assert!(host.try_virsh(&["domuuid", action]).is_err());
            assert!(told(&output).contains("failpoint"), "{}", told(&output));
        }
    }
}

const FIRMWARE: &str = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd\
    </loader><nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'/></os>";
const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

/// UEFI variables and a TPM's state go with a domain: twice into a twin, into a copy that boots, and
/// into one that goes on.
#[test]
fn firmware_and_tpm_go_with_a_domain() {
    let Some(inside) = Inside::start("firmware") else {
        return;
    };
    let host = &inside.host;
    let guest = LibvirtGuest::define_with(host, "ticker", Mode::Load, 1, TPM);
    let xml = host.virsh(&["dumpxml", "--inactive", "ticker"]);
    let file = host.file("uefi.xml");
    std::fs::write(&file, xml.replace("</os>", FIRMWARE)).unwrap();
    host.virsh(&["define", text(&file)]);
    guest.boot(host, Mode::Load);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let scratch = inside.scratch();
    let twin = inside.json(&["backup", "ticker", "--scratch", text(&scratch)])[0].clone();
    assert_eq!(twin["consistency"], "application", "{twin}");
    assert_eq!(twin["twin"]["domain"], true, "{twin}");
    assert_eq!(twin["disks"].as_array().map(Vec::len), Some(2), "{twin}");
    inside.assert_clean(&guest);

    let state = inside.backup("ticker", "state");
    for (name, id, run) in [("boots", &twin, false), ("goes-on", &state, true)] {
        let id = id["snapshot"].as_str().unwrap();
        let dir = host.file(name);
        let mut restore = vec!["restore", id, "--to", text(&dir), "--libvirt", URI];
        restore.extend(["--as", name]);
        restore.extend(run.then_some("--run"));
        inside.json(&restore);
        let uuid = host.virsh(&["domuuid", name]).trim().to_owned();
        let tpm = format!("/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall");
        if !run {
            assert_eq!(inside.read(&tpm), inside.tpm_of("ticker"));
            host.virsh(&["start", name]);
        }
        let begun = Instant::now();
        while first_number_if_any(&inside, name).is_none() {
            assert!(begun.elapsed() < PATIENCE, "{name} says nothing");
        }
        let xml = host.virsh(&["dumpxml", name]);
        let nvram = dir.join("system.flash1.raw");
        assert!(xml.contains(text(&nvram)), "{xml}");
        assert_eq!(inside.read(&tpm).len(), inside.tpm_of("ticker").len());
        host.virsh(&["destroy", name]);
    }
    inside.assert_clean(&guest);
}

/// A domain runs at once, on disks that come in behind it; its keeper is killed, and the same command
/// goes on. In the end nothing of the repository is needed, and libvirt and we can work on it.
#[test]
fn a_domain_runs_before_its_disks_are_there() {
    let Some(inside) = Inside::start("instant") else {
        return;
    };
    let host = &inside.host;
    let guest = LibvirtGuest::start(host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let report = inside.backup("ticker", "state");
    host.virsh(&["destroy", "ticker"]);
    host.virsh(&["undefine", "ticker"]);
    let dir = host.file("instant");
    let id = report["snapshot"].as_str().unwrap();
    let restore = ["restore", id, "--to", text(&dir), "--instant"];
    let restore = [&restore[..], &["--libvirt", URI, "--network", "original"]].concat();
    let mark = guest.log().mark();
    let begun = inside.json(&[&restore[..], &["--detach"]].concat());
    assert_eq!(begun["domain"], "ticker", "{begun}");
    guest.log().wait_for_since(mark, "tick n=", PATIENCE);
    let overlays = || {
        let mut info = host.command("qemu-img");
        info.args(["info", "-U", "--output=json"]);
        let said = run(info.arg(dir.join("virtio-disk0.qcow2"))).stdout;
        String::from_utf8_lossy(&said).contains("backing-filename")
    };
    assert!(overlays());
    let mut arguments = host.command("sh");
    arguments.args([
        "-c",
        "cat /proc/$(cat /run/libvirt/qemu/ticker.pid)/cmdline",
    ]);
    let arguments = String::from_utf8_lossy(&run(&mut arguments).stdout).into_owned();
    assert_eq!(arguments.matches("reconnect-delay").count(), 2);

    // Killed: the guest runs on what it has, and waits where it needs more.
    let mut kill = host.command("sh");
    run(kill.args(["-c", "kill -KILL $(pgrep -f ^vmtwin-instant-keeper)"]));
    assert_eq!(host.virsh(&["domstate", "ticker"]).trim(), "running");
    let done = inside.json(&restore);
    assert_eq!(done["local"], true, "{done}");
    assert!(!overlays());
    guest.wait_for_more("tick n=", PATIENCE);
    assert_eq!(guest.log().last_tick().unwrap().skew, 0);
    inside.vmtwin.assert_no_files_left();
    inside.compare_while_suspended("ticker", "instant");
    let snapshot = [
        "snapshot-create-as",
        "ticker",
        "--disk-only",
        "--no-metadata",
    ];
    host.virsh(&snapshot);
    guest.wait_for_more("tick n=", PATIENCE);
}
