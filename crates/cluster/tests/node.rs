//! The configuration of a node: exact on the way through XML, valid by the schema, true of this
//! host and of devices that the test makes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use time::macros::datetime;
use vmtwin_cluster::NodeDocument;
use vmtwin_cluster::node::{
    Hardware, InterfaceKind, Object, Objects, Part, SCHEMA, Setting, VERSION, collect_hardware,
};
use vmtwin_testkit::run;

fn document(hardware: Hardware, objects: Vec<Object>) -> NodeDocument {
    NodeDocument {
        version: VERSION,
        name: "node1".parse().unwrap(),
        id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        taken_at: datetime!(2026-11-22 19:22:41 UTC),
        program: "0.1.0".to_owned(),
        hardware,
        logical: Objects::default(),
        r#virtual: Objects {
            objects,
            settings: vec![Setting {
                name: "repository".to_owned(),
                value: "s3://bucket/vms".to_owned(),
            }],
        },
    }
}

fn domain(definition: &str) -> Object {
    Object {
        by: "libvirt".to_owned(),
        kind: "domain".to_owned(),
        name: "web01 <&> \"Ä\"".to_owned(),
        uuid: Some("f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned()),
        active: Some(true),
        autostart: Some(false),
        definition: definition.to_owned(),
        parts: vec![Part {
            kind: "snapshot".to_owned(),
            name: "before".to_owned(),
            encoding: None,
            content: definition.to_owned(),
        }],
    }
}

/// xmllint is the judge.
fn assert_valid(xml: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (schema, file) = (
        folder.path().join("node.xsd"),
        folder.path().join("node.xml"),
    );
    std::fs::write(&schema, SCHEMA).unwrap();
    std::fs::write(&file, xml).unwrap();
    run(Command::new("xmllint")
        .args(["--noout", "--nonet", "--schema"])
        .arg(&schema)
        .arg(&file));
}

#[test]
fn this_host_is_described_and_the_description_is_valid() {
    let hardware = collect_hardware(Path::new("/"));
    let of = |program: &str, arguments: &[&str]| {
        let output = run(Command::new(program).args(arguments));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(hardware.host.name, of("hostname", &[]));
    assert_eq!(hardware.host.kernel, of("uname", &["-r"]));
    assert_eq!(
        hardware.processor.threads.to_string(),
        of("nproc", &["--all"])
    );
    let memory = of("sh", &["-c", "awk '/MemTotal/ {print $2}' /proc/meminfo"]);
    assert_eq!(hardware.memory.bytes / 1024, memory.parse::<u64>().unwrap());
    let functions = of("sh", &["-c", "ls /sys/bus/pci/devices | wc -l"]);
    assert_eq!(hardware.pci.len().to_string(), functions);
    let document = document(hardware, vec![domain("<domain/>")]);
    let xml = document.to_xml().unwrap();
    assert_valid(&xml);
    assert_eq!(NodeDocument::from_xml(&xml).unwrap(), document);
}

/// Runs `this_test` again in a network of its own, with these devices in it.
fn with_devices(this_test: &str, make: &str) -> bool {
    const INSIDE: &str = "VMTWIN_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    run(Command::new("unshare")
        .args(["-n", "-m", "sh", "-ec"])
        .arg(format!("mount -t sysfs sysfs /sys; {make}; exec \"$@\""))
        .arg("sh")
        .arg(std::env::current_exe().unwrap())
        .args([this_test, "--exact", "--nocapture"])
        .env(INSIDE, "1"));
    false
}

#[test]
fn bridges_and_taps_are_as_the_host_has_them() {
    let make = "ip link add br0 type bridge stp_state 1; \
        ip tuntap add dev tap0 mode tap; ip link set tap0 mtu 1400 master br0";
    if !with_devices("bridges_and_taps_are_as_the_host_has_them", make) {
        return;
    }
    let hardware = collect_hardware(Path::new("/"));
    let named = |name: &str| {
        hardware
            .interfaces
            .iter()
            .find(|one| one.name == name)
            .unwrap()
    };
    let bridge = named("br0");
    assert_eq!(bridge.kind, InterfaceKind::Bridge);
    let settings = bridge.bridge.as_ref().unwrap();
    assert!(settings.stp && !settings.vlan_filtering);
    let port = named("tap0");
    assert_eq!(
        (port.mtu, port.master.as_deref()),
        (Some(1400), Some("br0"))
    );
    assert_eq!(port.kind, InterfaceKind::Tap);
    assert_eq!(named("lo").kind, InterfaceKind::Loopback);
    assert_valid(&document(hardware, Vec::new()).to_xml().unwrap());
}

/// What this machine's kernel may not have, in the shape that kernels give it.
#[test]
fn what_a_larger_host_has_is_read_too() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let link = |to: &str, path: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    for (name, index) in [("bond0", "3\n"), ("eth0", "2\n"), ("eth0.7", "4\n")] {
        write(&format!("sys/class/net/{name}/ifindex"), index);
    }
    write("sys/class/net/bonding_masters", "bond0\n");
    write("sys/class/net/eth0/address", "02:00:00:00:00:0b\n");
    write(
        "sys/class/net/eth0/bonding_slave/perm_hwaddr",
        "02:00:00:00:00:01\n",
    );
    write("sys/class/net/bond0/bonding/mode", "active-backup 1\n");
    write("sys/class/net/bond0/bonding/miimon", "100\n");
    write("sys/class/net/bond0/bonding/primary", "\n");
    write(
        "proc/net/vlan/eth0.7",
        "eth0.7  VID: 7\t REORDER_HDR: 1\n   Device: eth0\n",
    );
    link("../../../0000:3b:00.0", "sys/class/net/eth0/device");
    let pci = "sys/bus/pci/devices/0000:3b:02.1";
    for (file, text) in [
        ("class", "0x020000\n"),
        ("vendor", "0x8086\n"),
        ("device", "0x154c\n"),
        ("numa_node", "-1\n"),
        ("sriov_numvfs", "4\n"),
    ] {
        write(&format!("{pci}/{file}"), text);
    }
    link("../0000:3b:00.1", &format!("{pci}/physfn"));
    link(
        "../../../bus/pci/drivers/vfio-pci",
        &format!("{pci}/driver"),
    );
    write("sys/devices/system/node/node1/cpulist", "4-7\n");
    write(
        "sys/devices/system/node/node1/meminfo",
        "Node 1 MemTotal:  1024 kB\n",
    );
    let parent = "sys/devices/pci0000:00/0000:00:02.0/a1b2c3d4-0000-4000-8000-000000000001";
    write(&format!("{parent}/x"), "");
    link(
        "../mdev_supported_types/i915-GVTg_V5_4",
        &format!("{parent}/mdev_type"),
    );
    link(
        "../../../../sys/devices/pci0000:00/0000:00:02.0/a1b2c3d4-0000-4000-8000-000000000001",
        "sys/bus/mdev/devices/a1b2c3d4-0000-4000-8000-000000000001",
    );

    let hardware = collect_hardware(root.path());
    let named = |name: &str| {
        hardware
            .interfaces
            .iter()
            .find(|one| one.name == name)
            .unwrap()
    };
    assert_eq!(hardware.interfaces.len(), 3);
    let bond = named("bond0").bond.clone().unwrap();
    assert_eq!(
        (bond.mode.as_str(), bond.miimon_ms),
        ("active-backup", Some(100))
    );
    assert_eq!(bond.primary, None);
    let permanent = named("eth0").address.as_deref();
    assert_eq!(permanent, Some("02:00:00:00:00:01"));
    let vlan = named("eth0.7").vlan.clone().unwrap();
    assert_eq!((vlan.id, vlan.parent.as_str()), (7, "eth0"));
    let function = &hardware.pci[0];
    assert_eq!(function.physical.as_deref(), Some("0000:3b:00.1"));
    assert_eq!(function.driver.as_deref(), Some("vfio-pci"));
    assert_eq!((function.sriov, function.numa_node), (Some(4), None));
    assert_eq!(hardware.numa_nodes[0].memory_bytes, Some(1 << 20));
    assert_eq!(hardware.mdevs[0].parent, "0000:00:02.0");
    assert_eq!(hardware.mdevs[0].kind, "i915-GVTg_V5_4");
    assert_valid(&document(hardware, Vec::new()).to_xml().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What another program defined comes back as it was, to the last white space.
    #[test]
    fn any_definition_survives(text in "([ \t\r\n]|[ -~]|[\u{a0}-\u{ff}]|<a b='c'/>|]]>|&amp;|\u{1f40b}){0,60}") {
        // Readers of XML cannot tell it from indentation.
        prop_assume!(text.is_empty() || !text.trim_matches([' ', '\t', '\r', '\n']).is_empty());
        let document = document(Hardware::default(), vec![domain(&text)]);
        let xml = document.to_xml().unwrap();
        prop_assert_eq!(NodeDocument::from_xml(&xml).unwrap(), document);
    }

    #[test]
    fn noise_is_refused(noise in ".{0,200}", at in 0usize..400) {
        prop_assert!(NodeDocument::from_xml(&noise).is_err());
        let xml = document(Hardware::default(), vec![domain("<domain/>")]).to_xml().unwrap();
        // Cut somewhere, it is refused as well.
        prop_assert!(NodeDocument::from_xml(&xml[..at.min(xml.len() - 20)]).is_err());
    }
}

#[test]
fn a_definition_keeps_its_line_ends_and_what_xmllint_thinks_of_it() {
    let text = "\u{1}";
    let control = document(Hardware::default(), vec![domain(text)]).to_xml();
    assert!(control.is_err());
    let text = "  <domain type='kvm'>\r\n\t<name>web</name>\r\n</domain>\n\n";
    let document = document(Hardware::default(), vec![domain(text)]);
    let xml = document.to_xml().unwrap();
    assert_valid(&xml);
    assert_eq!(NodeDocument::from_xml(&xml).unwrap(), document);
}

#[test]
fn hostile_documents_are_refused() {
    let good = document(Hardware::default(), Vec::new()).to_xml().unwrap();
    let laughs = "<!DOCTYPE x [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]>";
    let (head, body) = good.split_once('\n').unwrap();
    let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
    for (xml, why) in [
        (format!("{head}\n{laughs}\n{body}"), "document type"),
        (good.replace("0.1.0", "&b;"), ""),
        (good.replace("s3://bucket/vms", "&b;"), "entity"),
        (format!("{good}{body}"), "no configuration"),
        (good.replace("version=\"1\"", "version=\"9\""), "version 9"),
        (
            good.replace("name=\"node1\"", "name=\"../x\""),
            "name of a node",
        ),
        (good.replace("<logical", "<more/><logical"), ""),
        (
            good.replace("<logical", &format!("{deep}<logical")),
            "too deep",
        ),
        (format!("<?php x?>{body}"), "instruction"),
    ] {
        let error = NodeDocument::from_xml(&xml).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn only_what_somebody_configured_makes_another_fingerprint() {
    let object = |kind: &str, definition: &str| Object {
        by: "libvirt".into(),
        kind: kind.into(),
        name: "x".into(),
        definition: definition.into(),
        ..Object::default()
    };
    let pool = |full: u32| format!("<pool><name>x</name><available>{full}</available></pool>");
    let of = |objects: Vec<Object>| document(Hardware::default(), objects).fingerprint();
    let before = of(vec![object("pool", &pool(1))]);
    assert_eq!(before.len(), 64);
    assert_eq!(of(vec![object("pool", &pool(2))]), before);
    let mut running = object("pool", &pool(1));
    running.active = Some(true);
    assert_eq!(of(vec![running]), before);
    assert_ne!(
        of(vec![object("pool", "<pool><name>y</name></pool>")]),
        before
    );
    assert_ne!(of(vec![]), before);
    let mut hardware = Hardware::default();
    hardware.memory.bytes = 1;
    let more = document(hardware, vec![object("pool", &pool(1))]);
    assert_ne!(more.fingerprint(), before);
}
