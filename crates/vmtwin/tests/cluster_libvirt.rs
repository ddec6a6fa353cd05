//! What a real libvirt defines is in the backup of its host, word for word, and no password is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test may fail by panicking"
)]

use std::path::Path;
use std::process::Output;

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

/// Where libvirt does not answer, or does not run any more, the last known configuration counts, and
/// stays.
#[test]
fn a_libvirt_that_is_down_empties_no_backup() {
    if let Some(reason) = LibvirtHost::hindrance() {
        eprintln!("not run: {reason}");
        return;
    }
    let host = LibvirtHost::start("down");
    define(&host, "net-define", NETWORK);
    define(&host, "define", DOMAIN);
    let home = host.file("home");
    let vmtwin = |args: &[&str]| -> Output {
        let mut command = host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command.args(["--json", "--home"]).arg(&home).args(args);
        command.output().unwrap()
    };
    let ends = |args: &[&str], code: i32| -> Value {
        let output = vmtwin(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    ends(&["cluster", "create", "lab", "--node", "n1"], 0);
    let first = ends(&["cluster", "backup"], 0)["nodes"][0]["as_of"].clone();

    let counts_as_down = |what_to_do: &str| {
        let report = ends(&["cluster", "backup", "--keep", "1"], 3);
        let node = &report["nodes"][0];
        assert_eq!(
            (&node["state"], &node["as_of"]),
            (&"last-known".into(), &first)
        );
        let warnings = report["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{report}");
        assert!(warnings[0].to_string().contains(what_to_do), "{report}");
        let view = ends(&["cluster", "view", report["file"].as_str().unwrap()], 0);
        for name in ["lan", "web"] {
            assert!(
                view.to_string().contains(&format!("<name>{name}</name>")),
                "{view}"
            );
        }
        let refused = vmtwin(&["cluster", "backup", "--require-all"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("nothing was written"), "{said}");
        let collected = ends(&["cluster", "collect"], 3);
        assert_eq!(collected["kept"], false, "{collected}");
        assert!(collected["warnings"][0].to_string().contains(what_to_do));
    };
    // Its sockets are there still.
    host.kill_libvirtd();
    counts_as_down("systemctl restart libvirtd");
    let sockets = ["libvirt-sock", "libvirt-sock-ro", "libvirt-admin-sock"];
    for socket in sockets.map(|name| Path::new("/run/libvirt").join(name)) {
        run(host.command("rm").arg(socket));
    }
    counts_as_down("systemctl start libvirtd");

    host.start_libvirtd();
    let forget = ["cluster", "collect", "--without-libvirt"];
    assert_eq!(vmtwin(&forget).status.code(), Some(1));
    ends(&["cluster", "backup", "--require-all"], 0);

    // It is put out for good: that is said once.
    host.kill_libvirtd();
    run(host.command("rm").args(["-r", "/run/libvirt"]));
    assert_eq!(ends(&forget, 0)["kept"], true);
    let report = ends(&["cluster", "backup", "--require-all"], 0);
    assert_eq!(report["nodes"][0]["state"], "collected");
}
