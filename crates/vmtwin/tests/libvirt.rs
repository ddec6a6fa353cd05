//! Guests of libvirt: in the table, backed up, and nothing left that hinders libvirt afterwards.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_testkit::{DiskFormat, DiskLedger, LibvirtGuest, LibvirtHost, Mode, assert_one_instant};

use common::{PASSWORD, Vmtwin, code, document, text, told};

const URI: &str = "qemu:///system";
/// For what takes no time, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary on a host with a libvirt of its own.
struct Inside {
    host: LibvirtHost,
    vmtwin: Vmtwin,
}

impl Inside {
    /// Nothing, and a reason on stderr, where libvirt hosts are not possible.
    fn start(name: &str) -> Option<Inside> {
        if let Some(reason) = LibvirtHost::hindrance() {
            eprintln!("not run: {reason}");
            return None;
        }
        let inside = Inside {
            host: LibvirtHost::start(name),
            vmtwin: Vmtwin::new(),
        };
        inside.json(&["init"]);
        Some(inside)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command
            .args(args)
            .env("VMTWIN_HOME", self.vmtwin.home())
            .env("VMTWIN_REPO", self.vmtwin.repo())
            .env("VMTWIN_PASSWORD", PASSWORD)
            .env_remove("VMTWIN_FAILPOINT");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", told(&output));
        document(&output)
    }

    fn backup(&self, name: &str, consistency: &str) -> Value {
        self.json(&["backup", name, "--consistency", consistency])[0].clone()
    }

    /// The row of a guest.
    fn row(&self, name: &str) -> Option<Value> {
        let rows = self.json(&["vm", "list"]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|row| row["name"] == name).cloned()
    }

    /// What the disks of a snapshot hold.
    fn ledgers(&self, id: &str, to: &str) -> Vec<DiskLedger> {
        let dir = self.vmtwin.path(to);
        let report = self.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
        let disks = report["disks"].as_array().unwrap().iter();
        disks
            .map(|disk| PathBuf::from(disk["path"].as_str().unwrap()))
            .map(|path| DiskLedger::read(path, DiskFormat::Raw))
            .collect()
    }

    fn monitor(&self, guest: &str, command: &str) -> Value {
        let answer = self.host.virsh(&["qemu-monitor-command", guest, command]);
        serde_json::from_str(&answer).unwrap()
    }

    /// The guest runs, and QEMU holds nothing of ours but bitmaps.
    fn assert_clean(&self, guest: &LibvirtGuest) {
        let name = guest.name();
        assert_eq!(self.host.virsh(&["domstate", name]).trim(), "running");
        for query in [
            "query-named-block-nodes",
            "query-block-exports",
            "query-fdsets",
            "query-block-jobs",
        ] {
            let mut answer = self.monitor(name, &format!("{{\"execute\":\"{query}\"}}"));
            for node in answer["return"].as_array_mut().unwrap() {
                if let Some(node) = node.as_object_mut() {
                    node.remove("dirty-bitmaps");
                }
            }
            let ours = answer.to_string().contains("vmtwin-");
            assert!(!ours, "{query}: {answer}");
        }
        let sets = self.monitor(name, r#"{"execute":"query-fdsets"}"#);
        let ours = |set: &Value| set["fdset-id"].as_u64() >= Some(1 << 30);
        assert!(
            !sets["return"].as_array().unwrap().iter().any(ours),
            "{sets}"
        );
        guest.wait_for_more("n=", PATIENCE);
        self.vmtwin.assert_nothing_left();
    }
}

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

    for consistency in ["state", "crash", "application"] {
        let report = inside.backup("ticker", consistency);
        eprintln!("{consistency}: {report}");
        assert_eq!(report["consistency"], consistency);
        let id = report["snapshot"].as_str().unwrap();
        let disks = inside.ledgers(id, consistency);
        assert_eq!(disks.len(), 2);
        if consistency != "application" {
            assert_one_instant(None, &disks);
        }
        inside.assert_clean(&guest);
    }
    inside.vmtwin.restic(&["check", "--read-data"]);
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
    assert!(told(&far).contains("run vmtwin there"), "{}", told(&far));
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
