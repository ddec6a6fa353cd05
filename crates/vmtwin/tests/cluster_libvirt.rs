//! What a real libvirt defines is in the backup of its host, word for word, and no password is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

use serde_json::Value;
use vmtwin_testkit::{LibvirtHost, run};

const NETWORK: &str = "<network><name>lan</name><bridge name='lan0'/>\
    <ip address='10.99.8.1' netmask='255.255.255.0'/></network>";
const DOMAIN: &str = "<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory>\
    <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
    <graphics type='vnc' port='-1' autoport='yes' passwd='hunter2'/></devices></domain>";

fn define(host: &LibvirtHost, command: &str, xml: &str) {
    let file = host.file(format!("{command}.xml"));
    std::fs::write(&file, xml).unwrap();
    host.virsh(&[command, file.to_str().unwrap()]);
}

#[test]
fn what_libvirt_defines_is_in_the_backup() {
    if let Some(reason) = LibvirtHost::hindrance() {
        eprintln!("not run: {reason}");
        return;
    }
    let host = LibvirtHost::start("cluster");
    define(&host, "net-define", NETWORK);
    define(&host, "define", DOMAIN);
    let pool = host.file("pool");
    std::fs::create_dir(&pool).unwrap();
    let pool = format!(
        "<pool type='dir'><name>images</name><target><path>{}</path></target></pool>",
        pool.display()
    );
    define(&host, "pool-define", &pool);
    host.virsh(&["pool-start", "images"]);
    host.virsh(&["pool-autostart", "images"]);
    host.virsh(&[
        "vol-create-as",
        "images",
        "disk.qcow2",
        "1M",
        "--format",
        "qcow2",
    ]);

    let home = host.file("home");
    let vmtwin = |args: &[&str]| -> Value {
        let mut command = host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command.args(["--json", "--home"]).arg(&home).args(args);
        serde_json::from_slice(&run(&mut command).stdout).unwrap()
    };
    vmtwin(&["cluster", "create", "lab", "--node", "n1"]);
    let report = vmtwin(&["cluster", "backup"]);
    assert_eq!(report["warnings"].as_array().unwrap().len(), 0);
    let file = report["file"].as_str().unwrap();
    let view = vmtwin(&["cluster", "view", file]);
    let node = &view["nodes"][0];
    let find = |part: &str, kind: &str, name: &str| {
        let objects = node[part]["object"].as_array().unwrap().iter();
        let mut found = objects.filter(|one| one["@kind"] == kind && one["@name"] == name);
        found
            .next()
            .unwrap_or_else(|| panic!("no {kind} {name}: {node}"))
    };
    let same = |object: &Value, virsh: &[&str]| {
        let expected = host.virsh(virsh);
        assert_eq!(
            object["definition"].as_str().unwrap().trim(),
            expected.trim()
        );
    };
    same(
        find("logical", "network", "lan"),
        &["net-dumpxml", "--inactive", "lan"],
    );
    let images = find("logical", "pool", "images");
    same(images, &["pool-dumpxml", "--inactive", "images"]);
    assert_eq!(
        (&images["@active"], &images["@autostart"]),
        (&true.into(), &true.into())
    );
    assert_eq!(images["part"][0]["@name"], "disk.qcow2");
    same(
        find("virtual", "domain", "web"),
        &["dumpxml", "--inactive", "web"],
    );
    assert!(!view.to_string().contains("hunter2"));
}
