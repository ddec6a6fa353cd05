//! Guests of libvirt with disks of every kind: each is backed up as it was, or it is said why not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use serde_json::Value;
use vmtwin_testkit::{LibvirtGuest, LibvirtHost, Mode, all_tests_wanted, run};

use common::inside::{Inside, PATIENCE, URI};
use common::{code, text, told};

const MIB: u64 = 1 << 20;

/// An image over others, nearest last.
fn chain(host: &LibvirtHost, name: &str) -> PathBuf {
    let mut below = host.file(format!("{name}-0.raw"));
    raw(&below, 24);
    for (level, format) in [(1, "raw"), (2, "qcow2")] {
        let image = host.file(format!("{name}-{level}.qcow2"));
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]);
        run(make.arg(&below).arg(&image).arg("40M"));
        below = image;
    }
    below
}

/// Half full of what no pattern has.
fn raw(path: &Path, size_mib: u64) {
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/urandom", "bs=1M", "conv=notrunc", "seek=8"]);
    fill.arg(format!("count={}", size_mib / 2 - 4))
        .arg(format!("of={}", path.display()));
    run(&mut fill);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(size_mib * MIB).unwrap();
}

fn qcow2(path: &Path, size_mib: u64) {
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"]).arg(path);
    run(make.arg(format!("{size_mib}M")));
}

/// A loop device; it goes with this value.
struct Loop(String);

impl Loop {
    /// Nothing, and a reason on stderr, where the machine has none.
    fn over(image: &Path) -> Option<Loop> {
        let mut setup = Command::new("losetup");
        let output = setup.args(["--find", "--show"]).arg(image).output();
        match output {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Loop(name.trim().to_owned()))
            }
            other => {
                eprintln!("no block device among the disks: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// An NBD server of an image. Its socket is there for the host of libvirt too.
struct NbdServer(Child);

impl NbdServer {
    fn start(image: &Path, socket: &Path) -> NbdServer {
        let mut server = Command::new("qemu-nbd");
        server.args(["--persistent", "--shared=0", "-f", "raw", "-k"]);
        let child = server.arg(socket).arg(image).spawn().unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < PATIENCE, "no qemu-nbd");
        }
        // QEMU runs as another user.
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        NbdServer(child)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The XML of a disk: its source, its target (device and bus), and what else it says.
fn disk(kind: &str, format: &str, source: &str, (dev, bus): (&str, &str), more: &str) -> String {
    let device = if more.contains("cdrom") {
        "cdrom"
    } else {
        "disk"
    };
    let more = more.trim_start_matches("cdrom");
    format!(
        "<disk type='{kind}' device='{device}'><driver name='qemu' type='{format}'/>{source}\
         <target dev='{dev}' bus='{bus}'/>{more}</disk>"
    )
}

fn file_disk(path: &Path, (dev, bus): (&str, &str), more: &str) -> String {
    let format = match path.extension().is_some_and(|end| end == "qcow2") {
        true => "qcow2",
        false => "raw",
    };
    let source = format!("<source file='{}'/>", path.display());
    disk("file", format, &source, (dev, bus), more)
}

/// A row of `vm show`.
fn rows(inside: &Inside, guest: &str) -> Vec<Value> {
    inside.row(guest).unwrap()["disks"]
        .as_array()
        .unwrap()
        .clone()
}

/// Writes through the guest's own devices, as its system would, where its ticker does not.
fn write_to_all(inside: &Inside, guest: &str, pattern: u8) {
    let blocks = inside.monitor(guest, r#"{"execute":"query-block"}"#);
    let mut count = 0;
    for block in blocks["return"].as_array().unwrap() {
        if block["inserted"]["ro"] != false {
            continue;
        }
        let qdev = block["qdev"].as_str().unwrap();
        for offset_mib in [9, 17, 22] {
            let line = format!("qemu-io -d {qdev} \"write -P {pattern} {offset_mib}M 300k\"");
            inside
                .host
                .virsh(&["qemu-monitor-command", guest, "--hmp", &line]);
        }
        count += 1;
    }
    assert!(count > 0);
}

/// Backs the guest up while it stands still, restores, and compares each disk with its source.
fn compare_all(inside: &Inside, guest: &str, to: &str) -> Value {
    inside.host.virsh(&["suspend", guest]);
    let report = inside.backup(guest, "crash");
    let id = report["snapshot"].as_str().unwrap();
    let dir = inside.vmtwin.path(to);
    let restored = inside.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    let sources = rows(inside, guest);
    let mut sources: Vec<&Value> = sources.iter().filter(|d| d["included"] == true).collect();
    for disk in restored["disks"].as_array().unwrap() {
        let at = sources.iter().position(|s| s["disk_id"] == disk["id"]);
        let source = sources.remove(at.unwrap());
        let mut compare = inside.host.command("qemu-img");
        compare.args(["compare", "-U", "-f", "raw", "-F"]);
        compare.arg(source["format"].as_str().unwrap());
        compare.arg(disk["path"].as_str().unwrap());
        run(compare.arg(source["address"].as_str().unwrap()));
    }
    assert!(sources.is_empty(), "not restored: {sources:?}");
    inside.host.virsh(&["resume", guest]);
    report
}

#[test]
fn disks_of_all_kinds_are_backed_up() {
    let Some(inside) = Inside::start("kinds") else {
        return;
    };
    let host = &inside.host;
    let paths = [
        "b.raw",
        "loop.raw",
        "nbd.raw",
        "f.raw",
        "shared.raw",
        "cd.raw",
    ];
    let [plain, looped, served, fixed, shared, cd] = paths.map(|name| host.file(name));
    for path in [&plain, &looped, &served, &fixed, &shared, &cd] {
        raw(path, 24);
    }
    let [scsi, sata] = ["scsi.qcow2", "sata.qcow2"].map(|name| host.file(name));
    qcow2(&scsi, 24);
    qcow2(&sata, 24);
    let device = Loop::over(&looped);
    let socket = host.file("nbd.sock");
    let _server = NbdServer::start(&served, &socket);
    let nbd = format!(
        "<source protocol='nbd'><host transport='unix' socket='{}'/></source>",
        socket.display()
    );
    let mut devices = vec![
        file_disk(&chain(host, "a"), ("vda", "virtio"), ""),
        file_disk(&plain, ("vdb", "virtio"), ""),
        disk("network", "raw", &nbd, ("vdc", "virtio"), ""),
        // The ticker writes to all virtio disks.
        file_disk(&fixed, ("sdf", "scsi"), "<readonly/>"),
        file_disk(&scsi, ("sda", "scsi"), ""),
        file_disk(&shared, ("sdb", "scsi"), "<shareable/>"),
        file_disk(&sata, ("sdc", "sata"), ""),
        file_disk(&cd, ("sdd", "sata"), "cdrom<readonly/>"),
        disk("file", "raw", "", ("sde", "sata"), "cdrom<readonly/>"),
        "<controller type='scsi' index='0' model='virtio-scsi'/>".to_owned(),
    ];
    if let Some(Loop(device)) = &device {
        let source = format!("<source dev='{device}'/>");
        devices.insert(3, disk("block", "raw", &source, ("vdd", "virtio"), ""));
    }
    let guest = LibvirtGuest::start_with(host, "many", Mode::Load, &devices.concat());
    inside.json(&["vm", "add", "--libvirt", URI]);

    let first = inside.backup("many", "state");
    let written = if device.is_some() { 4 } else { 3 };
    let ledgers = inside.ledgers(first["snapshot"].as_str().unwrap(), "first");
    let ledgers: Vec<_> = ledgers.into_iter().filter(|ledger| ledger.n > 0).collect();
    assert_eq!(ledgers.len(), written, "{ledgers:?}");
    inside.assert_clean(&guest);
    let all = rows(&inside, "many");
    let left_out = all.iter().filter(|disk| disk["included"] == false);
    let mut left_out: Vec<&str> = left_out.map(|d| d["address"].as_str().unwrap()).collect();
    left_out.sort_unstable();
    assert_eq!(left_out, [text(&cd), text(&fixed)]);

    write_to_all(&inside, "many", 0x5a);
    let second = compare_all(&inside, "many", "second");
    for disk in second["disks"].as_array().unwrap() {
        assert_eq!(disk["read"], "changed", "{second}");
    }
    write_to_all(&inside, "many", 0xa5);
    compare_all(&inside, "many", "third");
    inside.assert_clean(&guest);
    inside.vmtwin.restic(&["check", "--read-data"]);
}

/// A disk that another guest has open too is no disk of one instant: what the other writes passes
/// our filter by.
#[test]
fn a_disk_in_use_elsewhere_is_refused() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("shared") else {
        return;
    };
    let host = &inside.host;
    let shared = host.file("shared.raw");
    raw(&shared, 24);
    let devices = file_disk(&shared, ("vda", "virtio"), "<shareable/>");
    let guest = LibvirtGuest::start_with(host, "one", Mode::Load, &devices);
    inside.json(&["vm", "add", "--libvirt", URI]);
    compare_all(&inside, "one", "alone");

    let other = NbdServer::start(&shared, &host.file("other.sock"));
    for consistency in ["crash", "state"] {
        let refused = inside.run(&["backup", "one", "--consistency", consistency]);
        assert_eq!(code(&refused), 1, "{}", told(&refused));
        let told = told(&refused);
        assert!(told.contains("open elsewhere too"), "{told}");
        inside.assert_clean(&guest);
    }
    drop(other);
    compare_all(&inside, "one", "alone again");
}

/// An iSCSI target of the host; it ends with the host.
struct Target;

impl Target {
    const NAME: &str = "iqn.2026-11.test:disk";

    /// Nothing, and a reason on stderr, where the programs are missing.
    fn start(host: &LibvirtHost, image: &Path) -> Option<Target> {
        if !["/usr/sbin/tgtd", MODULE]
            .map(Path::new)
            .iter()
            .all(|p| p.exists())
        {
            eprintln!("not run: no tgt or no qemu-block-extra (tools/setup --all)");
            return None;
        }
        run(&mut host.command("tgtd"));
        let admin = |words: &[&str]| {
            let mut command = host.command("tgtadm");
            command.args(["--lld", "iscsi", "--tid", "1"]).args(words);
            vmtwin_testkit::try_run(&mut command)
        };
        let new = ["--mode", "target", "--op", "new", "-T", Target::NAME];
        let begun = Instant::now();
        while let Err(error) = admin(&new) {
            assert!(begun.elapsed() < PATIENCE, "{error:#}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let unit = ["--mode", "logicalunit", "--op", "new", "--lun", "1", "-b"];
        admin(&[&unit[..], &[text(image)]].concat()).unwrap();
        admin(&["--mode", "target", "--op", "bind", "-I", "ALL"]).unwrap();
        Some(Target)
    }

    fn source(&self) -> String {
        format!(
            "<source protocol='iscsi' name='{}/1'><host name='127.0.0.1' port='3260'/></source>",
            Target::NAME
        )
    }
}

/// QEMU's own client of iSCSI.
const MODULE: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so";

#[test]
fn an_iscsi_disk_is_backed_up() {
    if !all_tests_wanted() {
        eprintln!("not run: one of the long tests");
        return;
    }
    let Some(inside) = Inside::start("iscsi") else {
        return;
    };
    let host = &inside.host;
    let image = host.file("iscsi.raw");
    raw(&image, 24);
    let Some(target) = Target::start(host, &image) else {
        return;
    };
    let devices = disk("network", "raw", &target.source(), ("vda", "virtio"), "");
    let guest = LibvirtGuest::start_with(host, "remote", Mode::Load, &devices);
    inside.json(&["vm", "add", "--libvirt", URI]);
    inside.backup("remote", "state");
    assert_eq!(rows(&inside, "remote")[0]["kind"], "iscsi");
    write_to_all(&inside, "remote", 0x77);
    let report = compare_all(&inside, "remote", "iscsi");
    assert_eq!(report["disks"][0]["read"], "changed", "{report}");
    inside.assert_clean(&guest);
    host.virsh(&["destroy", "remote"]);
    let refused = inside.run(&["backup", "remote", "--consistency", "crash"]);
    assert_eq!(code(&refused), 1, "{}", told(&refused));
    assert!(
        told(&refused).contains("start the guest"),
        "{}",
        told(&refused)
    );
}
