//! Twins of libvirt's guests are domains: transient, named, cut off, and gone when they have ended,
//! however that comes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmtwin_testkit::debian::{judge, last_ack};
use vmtwin_testkit::{DiskFormat, Ext4State, LibvirtGuest, Log, Mode, run};

use common::inside::{CARD, Inside, PATIENCE, URI};
use common::{code, document, text, told};

impl Inside {
    /// The twin that is there, by name.
    fn twin(&self) -> Option<String> {
        let names = self.host.virsh(&["list", "--all", "--name"]);
        let mut names = names.lines();
        names
            .find(|name| name.contains("-twin-"))
            .map(str::to_owned)
    }

    fn wait_for_twin(&self, there: bool) -> Option<String> {
        let begun = Instant::now();
        loop {
            let twin = self.twin();
            if twin.is_some() == there {
                return twin;
            }
            assert!(begun.elapsed() < PATIENCE, "{twin:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A backup of the guest by a twin, on scratch that QEMU's user can reach.
    fn begin(&self, failpoint: &str) -> Child {
        self.backup_command(failpoint).spawn().unwrap()
    }

    fn backup_command(&self, failpoint: &str) -> Command {
        let scratch = self.scratch();
        let mut backup = self.command(&["backup", "ticker", "--json", "--scratch"]);
        backup.arg(scratch).env("VMTWIN_FAILPOINT", failpoint);
        backup.stdout(Stdio::piped()).stderr(Stdio::piped());
        backup
    }
}

#[test]
fn a_twin_is_a_domain() {
    let Some(inside) = Inside::start("twins") else {
        return;
    };
    let host = &inside.host;
    inside.make_bridge();
    let guest = LibvirtGuest::define_with(host, "ticker", Mode::Ext4, 2, CARD);
    guest.boot(host, Mode::Ext4);
    inside.json(&["vm", "add", "--libvirt", URI]);

    let backup = inside.begin("twin resume=sleep:3000");
    let twin = inside.wait_for_twin(true).unwrap();
    let described = host.virsh(&["desc", &twin]);
    assert!(described.contains("made by vmtwin"), "{described}");
    let info = host.virsh(&["dominfo", &twin]);
    assert!(info.contains("Persistent:     no"), "{info}");
    let card = inside.card(&twin);
    assert!(card["master"].is_null(), "{card}");
    let rows = inside.json(&["vm", "list"]);
    let roles = rows.as_array().unwrap().iter();
    let guests = roles.filter(|row| row["role"] == "guest").count();
    assert_eq!(guests, 1, "{rows}");
    let output = backup.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    let report = &document(&output)[0];
    assert_eq!(report["consistency"], "application");
    assert_eq!(report["twin"]["domain"], true, "{report}");
    assert_eq!(inside.wait_for_twin(false), None);
    inside.assert_clean(&guest);
    inside.assert_disk_is_clean(report["snapshot"].as_str().unwrap());

    ends_with_its_maker(&inside, &guest);
    is_a_process_where_libvirt_refuses(&inside, &guest);
}

/// The QEMU of a domain is killed: its standby goes on in its place, and libvirt cannot start the
/// domain on the same disks meanwhile.
#[test]
fn a_standby_takes_a_domains_place() {
    let Some(inside) = Inside::start("standby") else {
        return;
    };
    let host = &inside.host;
    let guest = LibvirtGuest::start(host, "ticker", Mode::Load, 2);
    inside.json(&["vm", "add", "--libvirt", URI]);
    let stopped = ["twin", "start", "ticker", "--standby"];
    inside.json(&stopped);
    inside.json(&["twin", "stop", "ticker-twin"]);
    inside.assert_clean(&guest);

    let before = guest.log().last_tick().unwrap().n;
    inside.json(&stopped);
    let after = guest.log().last_tick().unwrap().n;
    std::thread::sleep(Duration::from_secs(2));
    let mut kill = host.command("sh");
    run(kill.args(["-c", "kill -KILL $(cat /run/libvirt/qemu/ticker.pid)"]));
    let console = inside
        .vmtwin
        .home()
        .join("standby/ticker-twin/twin-console.log");
    let log = Log::new(console);
    let tick = log.wait_for_tick_after(0, PATIENCE);
    assert!(tick.n >= before && tick.n <= after + 400, "{tick:?}");
    log.wait_for_tick_after(tick.n + 100, PATIENCE);
    assert!(log.ticks_since(0).iter().all(|tick| tick.skew == 0));
    let row = inside.row("ticker").unwrap();
    assert_eq!(row["connection"]["kind"], "qmp", "{row}");
    assert_eq!(host.virsh(&["domstate", "ticker"]).trim(), "shut off");
    let refused = host.try_virsh(&["start", "ticker"]).unwrap_err();
    assert!(format!("{refused:#}").contains("lock"), "{refused:#}");
    let report = inside.backup("ticker", "state");
    assert_eq!(report["consistency"], "state");
}

/// What the twin of a bare guest proves, by a domain: data bases are closed, and nothing that was
/// acknowledged is missing.
#[test]
fn a_domain_closes_data_bases() {
    let Some(inside) = Inside::start("databases") else {
        return;
    };
    let guest = LibvirtGuest::start_debian(&inside.host, "ticker");
    inside.json(&["vm", "add", "--libvirt", URI]);
    let before = last_ack(guest.log());
    let mut backup = inside.backup_command("none=fail");
    let output = backup.args(["--twin-deadline-s", "600"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    let report = &document(&output)[0];
    eprintln!("paused {} ms, twin {}", report["pause_ms"], report["twin"]);
    assert_eq!(report["twin"]["domain"], true, "{report}");
    let dir = inside.vmtwin.path("databases");
    let id = report["snapshot"].as_str().unwrap();
    inside.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
    let judgement = judge(dir.join("virtio-disk0.raw"));
    judgement.assert_orderly();
    judgement.assert_holds(before);
    guest.wait_for_more("ack n=", PATIENCE);
}

/// Killed and failed before and after its memory, and while it runs.
fn ends_with_its_maker(inside: &Inside, guest: &LibvirtGuest) {
    for failpoint in ["twin state=kill", "twin resume=kill", "twin end=fail"] {
        let output = inside.begin(failpoint).wait_with_output().unwrap();
        assert_ne!(code(&output), 0, "{failpoint}");
        assert_eq!(inside.wait_for_twin(false), None, "{failpoint}");
        inside.json(&["recover"]);
        inside.assert_clean(guest);
    }
}

fn is_a_process_where_libvirt_refuses(inside: &Inside, guest: &LibvirtGuest) {
    let hook = "#!/bin/sh\ncase $1 in *-twin-*) echo no twins here >&2; exit 1 ;; esac\n";
    let mut install = inside.host.command("sh");
    let script = "mkdir -p /etc/libvirt/hooks && printf '%s' \"$0\" >/etc/libvirt/hooks/qemu && \
                  chmod 755 /etc/libvirt/hooks/qemu";
    assert!(
        install
            .args(["-c", script, hook])
            .status()
            .unwrap()
            .success()
    );
    inside.host.kill_libvirtd();
    inside.host.start_libvirtd();
    let output = inside.begin("none=fail").wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert!(told(&output).contains("no twins here"), "{}", told(&output));
    let report = &document(&output)[0];
    assert_eq!(report["consistency"], "application");
    assert_eq!(report["twin"]["domain"], false, "{report}");
    inside.assert_clean(guest);
    inside.assert_disk_is_clean(report["snapshot"].as_str().unwrap());
}

impl Inside {
    /// The first disk's file system was unmounted in order.
    fn assert_disk_is_clean(&self, id: &str) {
        let dir = self.vmtwin.path(&format!("clean-{}", &id[..8]));
        self.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
        let state = Ext4State::read(dir.join("virtio-disk0.raw"), DiskFormat::Raw);
        assert!(state.clean && state.sound && state.ended, "{state:?}");
    }
}
