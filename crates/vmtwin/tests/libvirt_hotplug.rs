//! Disks of libvirt guests that come and go: between backups, and while one is under way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, Mode, all_tests_wanted, run};

use common::inside::{Inside, PATIENCE, URI};
use common::{code, document, text, told};

const GUEST: &str = "plugged";

/// A new image that is not empty.
fn image(inside: &Inside, name: &str) -> String {
    let path = inside.host.file(name);
    let mut make = Command::new("qemu-img");
    let format = format_of(&path);
    run(make
        .args(["create", "-q", "-f", format])
        .arg(&path)
        .arg("24M"));
    write(&path, "0x11");
    text(&path).to_owned()
}

/// Writes past QEMU's guest, as when the disk is used elsewhere.
fn write(path: &Path, pattern: &str) {
    let mut write = Command::new("qemu-io");
    write.args(["-f", format_of(path), "-c"]);
    run(write.arg(format!("write -P {pattern} 4M 1M")).arg(path));
}

fn format_of(path: &Path) -> &'static str {
    match path.extension().is_some_and(|end| end == "qcow2") {
        true => "qcow2",
        false => "raw",
    }
}

fn attach(inside: &Inside, image: &str, target: &str) {
    let format = format_of(Path::new(image));
    let more = ["--subdriver", format, "--live"];
    let command = ["attach-disk", GUEST, image, target];
    inside.host.virsh(&[&command[..], &more].concat());
}

/// Detaches a disk, and waits until the guest has given it up.
fn detach(inside: &Inside, target: &str) {
    inside.host.virsh(&["detach-disk", GUEST, target, "--live"]);
    let begun = Instant::now();
    let there = || inside.host.virsh(&["domblklist", GUEST]).contains(target);
    while there() {
        assert!(begun.elapsed() < PATIENCE, "{target} does not go");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A guest with one disk and room for more.
fn start(inside: &Inside) -> LibvirtGuest {
    let first = image(inside, "first.qcow2");
    let port = |n: u32| format!("<controller type='pci' index='{n}' model='pcie-root-port'/>");
    let ports: String = (1..12).map(port).collect();
    let ports = format!("<controller type='pci' index='0' model='pcie-root'/>{ports}");
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{first}'/>\
         <target dev='vda' bus='virtio'/></disk>{ports}"
    );
    let guest = LibvirtGuest::start_with(&inside.host, GUEST, Mode::Load, &disk);
    inside.json(&["vm", "add", "--libvirt", URI]);
    guest
}

/// How each disk was read, in order.
fn read(report: &Value) -> Vec<String> {
    let disks = report["disks"].as_array().unwrap().iter();
    disks
        .map(|disk| format!("{}: {}", text_of(&disk["id"]), text_of(&disk["read"])))
        .collect()
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn begin(inside: &Inside, step: &str) -> Child {
    let mut ours = inside.command(&["backup", GUEST, "--consistency", "crash", "--json"]);
    ours.env("VMTWIN_FAILPOINT", format!("{step}=sleep:5000"));
    let ours = ours.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ours = ours.spawn().unwrap();
    inside.wait_for_export(GUEST);
    ours
}

fn end(ours: Child) -> Output {
    ours.wait_with_output().unwrap()
}

#[test]
fn disks_come_and_go_between_backups() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("comeandgo") else {
        return;
    };
    let guest = start(&inside);
    inside.backup(GUEST, "state");
    let (kept, plain) = (image(&inside, "kept.qcow2"), image(&inside, "plain.raw"));
    attach(&inside, &kept, "vdb");
    attach(&inside, &plain, "vdc");
    let with = inside.backup(GUEST, "state");
    let ids = [
        "virtio-disk0: changed",
        "virtio-disk1: all",
        "virtio-disk2: all",
    ];
    assert_eq!(read(&with), ids);
    assert_eq!(
        read(&inside.backup(GUEST, "crash"))[1],
        "virtio-disk1: changed"
    );
    inside.compare_while_suspended_as(GUEST, "with", &["qcow2", "qcow2", "raw"]);

    detach(&inside, "vdb");
    detach(&inside, "vdc");
    let without = inside.backup(GUEST, "crash");
    assert_eq!(read(&without), ["virtio-disk0: changed"]);
    // Used elsewhere meanwhile; what an image's own bitmap has noted counts.
    write(Path::new(&kept), "0x22");
    write(Path::new(&plain), "0x33");
    attach(&inside, &kept, "vdb");
    attach(&inside, &plain, "vdc");
    inside.compare_while_suspended_as(GUEST, "again", &["qcow2", "qcow2", "raw"]);
    // Another image in the place of the one that was there.
    detach(&inside, "vdb");
    attach(&inside, &image(&inside, "other.qcow2"), "vdb");
    let other = inside.compare_while_suspended_as(GUEST, "other", &["qcow2", "qcow2", "raw"]);
    assert_eq!(
        read(&other),
        [
            "virtio-disk0: changed",
            "virtio-disk2: changed",
            "virtio-disk1: all"
        ]
    );
    inside.assert_clean(&guest);
}

#[test]
fn disks_come_and_go_during_a_backup() {
    let Some(inside) = Inside::start("meanwhile") else {
        return;
    };
    let guest = start(&inside);
    let spare = image(&inside, "spare.qcow2");
    attach(&inside, &spare, "vdb");

    let ours = begin(&inside, "read virtio-disk0");
    detach(&inside, "vdb");
    let output = end(ours);
    eprintln!("{}", told(&output));
    let graph = inside.monitor(
        GUEST,
        r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#,
    );
    for node in graph["return"].as_array().unwrap() {
        eprintln!("NODE {} {}", node["node-name"], node["file"]);
    }
    attach(&inside, &spare, "vdb");
    inside.assert_clean(&guest);

    let ours = begin(&inside, "read virtio-disk0");
    let late = image(&inside, "late.qcow2");
    attach(&inside, &late, "vdc");
    let output = end(ours);
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert_eq!(document(&output)[0]["disks"].as_array().unwrap().len(), 2);
    inside.assert_clean(&guest);
    inside.compare_while_suspended(GUEST, "late");
}
