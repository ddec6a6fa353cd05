//! Guests of libvirt that are off, and an upgrade of the program while it backs one up.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, Mode, all_tests_wanted, run};

use common::inside::{Inside, PATIENCE, URI};
use common::{code, text, told};

const GUEST: &str = "off";

fn write(image: &Path, pattern: &str, at: &str) {
    let mut write = Command::new("qemu-io");
    write.args(["-f", "qcow2", "-c"]);
    run(write.arg(format!("write -P {pattern} {at} 1M")).arg(image));
}

/// Backs the guest up while it is off; what is restored is what its images hold.
fn compare(inside: &Inside, to: &str) -> Value {
    let report = inside.backup(GUEST, "crash");
    assert_eq!(report["pause_ms"], Value::Null);
    let id = report["snapshot"].as_str().unwrap();
    let dir = inside.vmtwin.path(to);
    let restored = inside.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    let images = inside.host.virsh(&["domblklist", GUEST]);
    let images = images
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    let disks = restored["disks"].as_array().unwrap();
    assert_eq!(disks.len(), images.clone().count());
    for (disk, image) in disks.iter().zip(images) {
        let mut compare = inside.host.command("qemu-img");
        compare.args(["compare", "-f", "raw", "-F", "qcow2"]);
        run(compare.arg(disk["path"].as_str().unwrap()).arg(image));
    }
    report
}

fn disk_ids(inside: &Inside) -> Vec<String> {
    let row = inside.row(GUEST).unwrap();
    let disks = row["disks"].as_array().unwrap().iter();
    disks.map(|disk| disk["disk_id"].to_string()).collect()
}

/// Never seen running; then seen; then with other images than it was last seen with.
#[test]
fn a_guest_that_is_off_is_backed_up_by_its_definition() {
    let Some(inside) = Inside::start("off") else {
        return;
    };
    let host = &inside.host;
    let guest = LibvirtGuest::define(host, GUEST, Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    write(&guest.disks()[0], "0x11", "1M");
    write(&guest.disks()[1], "0x22", "30M");
    compare(&inside, "never");
    let ids = disk_ids(&inside);
    let lesser = inside.run(&["backup", GUEST, "--consistency", "state"]);
    assert_eq!(code(&lesser), 3, "{}", told(&lesser));

    let copy = host.file("copy");
    let restore = ["restore", "latest", "--to", text(&copy), "--libvirt", URI];
    inside.json(&[&restore[..], &["--as", "copy"]].concat());
    let refused = inside.run(&[
        "restore",
        "latest",
        "--to",
        text(&host.file("run")),
        "--run",
    ]);
    assert_eq!(code(&refused), 1, "{}", told(&refused));
    assert!(
        told(&refused).contains("without --run"),
        "{}",
        told(&refused)
    );

    host.virsh(&["start", GUEST]);
    guest.log().wait_for("ready mode=", PATIENCE * 3);
    inside.backup(GUEST, "crash");
    assert_eq!(disk_ids(&inside), ids);
    host.virsh(&["destroy", GUEST]);
    compare(&inside, "seen");

    host.virsh(&[
        "snapshot-create-as",
        GUEST,
        "one",
        "--disk-only",
        "--no-metadata",
    ]);
    let overlays = host.virsh(&["domblklist", GUEST]);
    let overlay = overlays
        .lines()
        .find_map(|line| line.split_whitespace().nth(1));
    let overlay = Path::new(overlay.unwrap());
    assert_ne!(overlay, guest.disks()[0]);
    write(overlay, "0x33", "2M");
    compare(&inside, "overlays");

    let mut held = Command::new("qemu-nbd");
    held.args(["--persistent", "-f", "qcow2", "-k"]);
    let mut held = held
        .arg(host.file("held.sock"))
        .arg(overlay)
        .spawn()
        .unwrap();
    while !host.file("held.sock").exists() {}
    let refused = inside.run(&["backup", GUEST, "--consistency", "crash"]);
    assert_eq!(code(&refused), 1);
    assert!(told(&refused).contains("cannot read"), "{}", told(&refused));
    held.kill().unwrap();
    held.wait().unwrap();
    inside.vmtwin.assert_nothing_left();
    inside.vmtwin.restic(&["check", "--read-data"]);
}

/// Its file is replaced by an upgrade; what it starts is still itself.
#[test]
fn the_program_may_be_replaced_while_it_backs_up() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("upgrade") else {
        return;
    };
    let guest = LibvirtGuest::start(&inside.host, "ticker", Mode::Load, 1);
    inside.json(&["vm", "add", "--libvirt", URI]);
    inside.backup("ticker", "crash");
    let program = inside.vmtwin.path("vmtwin");
    std::fs::copy(env!("CARGO_BIN_EXE_vmtwin"), &program).unwrap();
    let mut ours = inside.host.command(&program);
    ours.args(["backup", "ticker", "--consistency", "crash"]);
    for (name, value) in inside.command(&[]).get_envs() {
        if let Some(value) = value {
            ours.env(name, value);
        }
    }
    ours.env("VMTWIN_FAILPOINT", "read virtio-disk0=sleep:4000");
    let ours = ours.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ours = ours.spawn().unwrap();
    inside.wait_for_export("ticker");
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "an upgrade, half written").unwrap();
    let output = ours.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    inside.assert_clean(&guest);
    // The relay at its end removed the earlier backup's bitmap.
    let bitmaps = inside.monitor("ticker", r#"{"execute":"query-named-block-nodes"}"#);
    let bitmaps = bitmaps.to_string();
    let ours = bitmaps.matches("\"name\":\"vmtwin-").count();
    assert_eq!(ours, 1, "{bitmaps}");
}
