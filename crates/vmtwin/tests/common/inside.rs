//! The binary on a host with a libvirt of its own, and what tests of libvirt's guests ask of both.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_testkit::{DiskFormat, DiskLedger, LibvirtGuest, LibvirtHost, run};

use super::{PASSWORD, Vmtwin, code, document, text, told};

/// libvirt's address on its host.
pub(crate) const URI: &str = "qemu:///system";
/// A bridge of the host, and a network card on it.
pub(crate) const BRIDGE: &str = "br-lan";
pub(crate) const CARD: &str = "<interface type='bridge'><mac address='52:54:00:00:00:07'/>\
                               <source bridge='br-lan'/><model type='virtio'/></interface>";
/// For what takes no time, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary on a host with a libvirt of its own.
pub(crate) struct Inside {
    pub(crate) host: LibvirtHost,
    pub(crate) vmtwin: Vmtwin,
}

impl Inside {
    /// Nothing, and a reason on stderr, where libvirt hosts are not possible.
    pub(crate) fn start(name: &str) -> Option<Inside> {
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

    /// A folder for scratch that QEMU's user may enter.
    pub(crate) fn scratch(&self) -> PathBuf {
        let scratch = self.host.file("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(&scratch, open).unwrap();
        scratch
    }

    /// Makes [`BRIDGE`].
    pub(crate) fn make_bridge(&self) {
        let mut bridge = self.host.command("ip");
        run(bridge.args(["link", "add", BRIDGE, "up", "type", "bridge"]));
    }

    /// What `ip` tells of the network card of a domain.
    pub(crate) fn card(&self, domain: &str) -> Value {
        let cards = self.host.virsh(&["domiflist", domain]);
        let name = cards.split_whitespace().next().unwrap().to_owned();
        let mut link = self.host.command("ip");
        let output = run(link.args(["-json", "link", "show", "dev", &name]));
        let links: Value = serde_json::from_slice(&output.stdout).unwrap();
        links[0].clone()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_vmtwin"));
        command
            .args(args)
            .env("VMTWIN_HOME", self.vmtwin.home())
            .env("VMTWIN_REPO", self.vmtwin.repo())
            .env("VMTWIN_PASSWORD", PASSWORD)
            .env_remove("VMTWIN_FAILPOINT");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", told(&output));
        document(&output)
    }

    pub(crate) fn backup(&self, name: &str, consistency: &str) -> Value {
        self.json(&["backup", name, "--consistency", consistency])[0].clone()
    }

    /// The row of a guest.
    pub(crate) fn row(&self, name: &str) -> Option<Value> {
        let rows = self.json(&["vm", "list"]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.find(|row| row["name"] == name).cloned()
    }

    /// What the disks of a snapshot hold.
    pub(crate) fn ledgers(&self, id: &str, to: &str) -> Vec<DiskLedger> {
        let dir = self.vmtwin.path(to);
        let report = self.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
        let disks = report["disks"].as_array().unwrap().iter();
        disks
            .map(|disk| PathBuf::from(disk["path"].as_str().unwrap()))
            .map(|path| DiskLedger::read(path, DiskFormat::Raw))
            .collect()
    }

    pub(crate) fn monitor(&self, guest: &str, command: &str) -> Value {
        let answer = self.host.virsh(&["qemu-monitor-command", guest, command]);
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) fn wait_for_no_job(&self, guest: &str) {
        let busy = || {
            let jobs = self.monitor(guest, r#"{"execute":"query-block-jobs"}"#);
            jobs["return"] != serde_json::json!([])
        };
        let begun = Instant::now();
        while busy() {
            assert!(begun.elapsed() < PATIENCE, "a job goes on");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Backs a guest up that stands still: what is restored is what its images hold.
    pub(crate) fn compare_while_suspended(&self, guest: &str, to: &str) {
        let disks = self.host.virsh(&["domblklist", guest]);
        let formats = vec!["qcow2"; disks.lines().filter(|line| !line.is_empty()).count()];
        self.compare_while_suspended_as(guest, to, &formats);
    }

    /// The same for images of these formats, in libvirt's order; returns the backup's report.
    pub(crate) fn compare_while_suspended_as(
        &self,
        guest: &str,
        to: &str,
        formats: &[&str],
    ) -> Value {
        self.host.virsh(&["suspend", guest]);
        let report = self.backup(guest, "crash");
        let id = report["snapshot"].as_str().unwrap();
        let dir = self.vmtwin.path(&format!("{to}-still"));
        let restored = self.json(&["restore", id, "--to", text(&dir), "--format", "raw"]);
        let images = self.host.virsh(&["domblklist", guest]);
        let images: Vec<&str> = images
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        let mut disks = restored["disks"].as_array().unwrap().clone();
        // As libvirt has them; QEMU, as they came.
        disks.sort_by_key(|disk| disk["id"].to_string());
        assert_eq!([disks.len(), images.len()], [formats.len(); 2]);
        for ((disk, image), format) in disks.iter().zip(images).zip(formats) {
            let mut compare = self.host.command("qemu-img");
            compare.args(["compare", "-U", "-f", "raw", "-F", format]);
            run(compare.arg(disk["path"].as_str().unwrap()).arg(image));
        }
        self.host.virsh(&["resume", guest]);
        report
    }

    pub(crate) fn wait_for_export(&self, guest: &str) {
        let begun = Instant::now();
        loop {
            let exports = self.monitor(guest, r#"{"execute":"query-block-exports"}"#);
            if exports.to_string().contains("vmtwin-") {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing is exported");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The guest runs, and QEMU holds nothing of ours but bitmaps.
    pub(crate) fn assert_clean(&self, guest: &LibvirtGuest) {
        let name = guest.name();
        assert_eq!(self.host.virsh(&["domstate", name]).trim(), "running");
        for (query, key) in [
            ("query-named-block-nodes", "node-name"),
            ("query-block-exports", "id"),
        ] {
            let answer = self.monitor(name, &format!("{{\"execute\":\"{query}\"}}"));
            let all = answer["return"].as_array().unwrap().iter();
            let mut names = all.filter_map(|one| one[key].as_str());
            let ours = names.find(|name| name.starts_with("vmtwin-"));
            assert_eq!(ours, None, "{query}");
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
