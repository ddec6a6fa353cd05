//! Incremental backups against a model: whatever happens between two backups, a snapshot holds the
//! disks as they were, and what is read is little where nothing is in doubt.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use vmtwin_testkit::{Qmp, all_tests_wanted};

use common::{PATIENCE, VM, Vmtwin, code, text};

const MIB: usize = 1 << 20;
/// Steps that are made fail: what comes before, in and after the point, and beyond the snapshot.
const STEPS: [&str; 6] = [
    "mark disk0",
    "filter disk0",
    "pause",
    "read disk0",
    "snapshot",
    "catalog",
];

/// What may happen to a guest between two backups.
#[derive(Debug, Clone)]
enum Event {
    /// It writes: disk, offset and length in units of 512 bytes, value of the bytes.
    Write(usize, usize, usize, u8),
    /// It discards.
    Discard(usize, usize, usize),
    Backup,
    /// A backup fails, or is killed, at a step.
    Failure(usize, bool),
    /// It is shut down and started again, perhaps with one more disk.
    Restart(bool),
    /// Its QEMU is killed, and started again.
    Kill,
    /// A disk becomes longer.
    Resize(usize),
    /// Somebody takes an external snapshot, so that the disk is another image from then on.
    Overlay(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (disk, at, len) = (0..3usize, 0..16_000usize, 1..600usize);
    prop_oneof![
        6 => (disk.clone(), at.clone(), len.clone(), 1..=255u8)
            .prop_map(|(d, o, l, v)| Event::Write(d, o, l, v)),
        1 => (disk.clone(), at, len).prop_map(|(d, o, l)| Event::Discard(d, o, l)),
        5 => Just(Event::Backup),
        2 => (0..STEPS.len(), any::<bool>()).prop_map(|(s, k)| Event::Failure(s, k)),
        1 => any::<bool>().prop_map(Event::Restart),
        1 => Just(Event::Kill),
        1 => disk.clone().prop_map(Event::Resize),
        1 => disk.prop_map(Event::Overlay),
    ]
}

#[test]
fn every_snapshot_holds_what_the_disks_held() {
    let (cases, length) = if all_tests_wanted() {
        (30, 40)
    } else {
        (2, 24)
    };
    let config = Config {
        cases,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    // The same every time; another seed is another campaign.
    let seed = std::env::var("VMTWIN_SEED").map_or(1, |seed| seed.parse().unwrap());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let events = proptest::collection::vec(event(), length);
    runner
        .run(&events, |events| {
            eprintln!("{events:?}");
            play(&events);
            Ok(())
        })
        .unwrap();
}

fn play(events: &[Event]) {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let mut machine = Machine::new(vmtwin.path("vm"));
    machine.start();
    vmtwin.ok(&["vm", "add", VM, "--qmp", text(&machine.dir.join("qmp"))]);
    let mut snapshots: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
    for event in events.iter().chain([&Event::Backup, &Event::Backup]) {
        match event {
            Event::Backup => {
                let report = vmtwin.backup_as("crash", &[]);
                machine.check_report(&report);
                assert!((0..machine.disks.len()).all(|disk| !machine.has_lost_bitmap(disk)));
                snapshots.push((
                    report["snapshot"].as_str().unwrap().into(),
                    machine.contents(),
                ));
            }
            Event::Failure(step, kill) => {
                let action = if *kill { "kill" } else { "fail" };
                let mut command = vmtwin.command(&["backup", VM, "--consistency", "crash"]);
                command.env("VMTWIN_FAILPOINT", format!("{}={action}", STEPS[*step]));
                let output = command.output().unwrap();
                assert_ne!(code(&output), 0);
                // The next one builds on what the last good one built on.
                vmtwin.ok(&["recover"]);
            }
            other => machine.play(other),
        }
    }
    vmtwin.assert_nothing_left();
    drop(machine);
    for (number, (id, disks)) in snapshots.iter().enumerate() {
        let dir = vmtwin.path(&format!("restored-{number}"));
        vmtwin.ok(&["restore", id, "--to", text(&dir), "--format", "raw"]);
        for (disk, content) in disks.iter().enumerate() {
            let restored = std::fs::read(dir.join(format!("disk{disk}.raw"))).unwrap();
            assert!(
                restored == *content,
                "disk{disk} of snapshot {number} differs"
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    vmtwin.restic(&["check", "--read-data"]);
}

/// A machine without a system, whose disks are written to through its devices, and the model.
struct Machine {
    dir: PathBuf,
    disks: Vec<Disk>,
    qemu: Option<(Child, Qmp)>,
}

struct Disk {
    image: PathBuf,
    qcow2: bool,
    content: Vec<u8>,
    /// What the next backup may have to read at most, if it must not read everything.
    changed: Option<usize>,
}

impl Machine {
    fn new(dir: PathBuf) -> Machine {
        std::fs::create_dir(&dir).unwrap();
        let mut machine = Machine {
            dir,
            disks: Vec::new(),
            qemu: None,
        };
        machine.add_disk(true);
        machine.add_disk(false);
        machine
    }

    fn add_disk(&mut self, qcow2: bool) {
        let image = self.dir.join(format!("image{}", self.disks.len()));
        let format = if qcow2 { "qcow2" } else { "raw" };
        create(&["-f", format, text(&image), "8M"]);
        self.disks.push(Disk {
            image,
            qcow2,
            content: vec![0; 8 * MIB],
            changed: None,
        });
    }

    fn start(&mut self) {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg",
            "-M",
            "q35",
            "-m",
            "32",
            "-display",
            "none",
            "-nodefaults",
        ]);
        for (number, disk) in self.disks.iter().enumerate() {
            let format = if disk.qcow2 { "qcow2" } else { "raw" };
            let image = text(&disk.image);
            command.args([
                "-blockdev",
                &format!(
                    "{format},node-name=node{number},discard=unmap,file.driver=file,\
                 file.filename={image},file.discard=unmap"
                ),
            ]);
            let device = format!("virtio-blk-pci,id=disk{number},drive=node{number}");
            command.args(["-device", &device]);
        }
        for socket in ["qmp", "test"] {
            let path = self.dir.join(socket);
            let _ = std::fs::remove_file(&path);
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", text(&path))]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let qemu = command.spawn().expect("starting QEMU");
        let end = std::time::Instant::now() + PATIENCE;
        let qmp = loop {
            match Qmp::connect(&self.dir.join("test")) {
                Ok(qmp) => break qmp,
                Err(error) => assert!(std::time::Instant::now() < end, "no answer: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        self.qemu = Some((qemu, qmp));
    }

    fn execute(&self, command: &str, arguments: Value) -> Value {
        let (_, qmp) = self.qemu.as_ref().unwrap();
        qmp.execute(command, arguments)
    }

    fn io(&self, disk: usize, command: &str) {
        let line =
            format!("qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"{command}\"");
        let answer = self.execute("human-monitor-command", json!({"command-line": line}));
        let words = answer.as_str().unwrap_or_default().to_lowercase();
        assert!(
            !words.contains("fail") && !words.contains("error"),
            "{line}: {words}"
        );
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Write(disk, at, len, value) => {
                if let Some((disk, at, len)) = self.range(disk, at, len) {
                    self.io(disk, &format!("write -P {value} {at} {len}"));
                    self.write(disk, at, len, value);
                }
            }
            Event::Discard(disk, at, len) => {
                if let Some((disk, at, len)) = self.range(disk, at, len) {
                    // Discarding alone may leave old data.
                    self.io(disk, &format!("write -z -u {at} {len}"));
                    self.write(disk, at, len, 0);
                }
            }
            Event::Restart(one_more) => {
                self.execute("quit", json!({}));
                self.qemu.take().unwrap().0.wait().unwrap();
                for disk in self.disks.iter_mut().filter(|disk| !disk.qcow2) {
                    // A bitmap of a raw image lives as long as QEMU.
                    disk.changed = None;
                }
                if one_more && self.disks.len() < 3 {
                    self.add_disk(true);
                }
                self.start();
            }
            Event::Kill => {
                for disk in 0..self.disks.len() {
                    self.io(disk, "flush");
                }
                let (mut qemu, _) = self.qemu.take().unwrap();
                qemu.kill().unwrap();
                qemu.wait().unwrap();
                self.disks.iter_mut().for_each(|disk| disk.changed = None);
                self.start();
            }
            // QEMU refuses it while a disk has the bitmap that it lost when it was killed; a backup
            // puts another one in its place.
            Event::Resize(number) if self.has_lost_bitmap(number % self.disks.len()) => {}
            Event::Resize(number) => {
                let number = number % self.disks.len();
                let disk = &mut self.disks[number];
                disk.content.resize(disk.content.len() + MIB, 0);
                disk.changed = None;
                let size = disk.content.len();
                let node = self.node(number);
                self.execute("block_resize", json!({"node-name": node, "size": size}));
            }
            Event::Overlay(number) => {
                let number = number % self.disks.len();
                let overlay = self.dir.join(format!(
                    "{}-over",
                    self.disks[number]
                        .image
                        .file_name()
                        .unwrap()
                        .to_str()
                        .unwrap()
                ));
                let node = self.node(number);
                let name = format!("over{}", text(&overlay).len());
                self.execute(
                    "blockdev-snapshot-sync",
                    json!({"node-name": node, "snapshot-file": overlay, "format": "qcow2",
                           "snapshot-node-name": format!("{name}-{number}")}),
                );
                let disk = &mut self.disks[number];
                (disk.image, disk.qcow2, disk.changed) = (overlay, true, None);
            }
            Event::Backup | Event::Failure(..) => unreachable!(),
        }
    }

    /// The root node of a disk, as QEMU has it now.
    fn node(&self, disk: usize) -> String {
        let blocks = self.execute("query-block", json!({}));
        let path = format!("/machine/peripheral/disk{disk}/virtio-backend");
        let mut blocks = blocks.as_array().unwrap().iter();
        let block = blocks.find(|block| block["qdev"] == *path).unwrap();
        block["inserted"]["node-name"].as_str().unwrap().to_owned()
    }

    fn has_lost_bitmap(&self, disk: usize) -> bool {
        let node = self.node(disk);
        let nodes = self.execute("query-named-block-nodes", json!({"flat": true}));
        let mut nodes = nodes.as_array().unwrap().iter();
        let node = nodes.find(|one| one["node-name"] == *node).unwrap();
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        bitmaps
            .into_iter()
            .any(|bitmap| bitmap["inconsistent"] == true)
    }

    /// A disk that is there, and a range within it, bytes.
    fn range(&self, disk: usize, at: usize, len: usize) -> Option<(usize, usize, usize)> {
        let disk = disk % self.disks.len();
        let (at, len) = (at * 512, len * 512);
        let end = (at + len).min(self.disks[disk].content.len());
        (at < end).then(|| (disk, at, end - at))
    }

    fn write(&mut self, disk: usize, at: usize, len: usize, value: u8) {
        let disk = &mut self.disks[disk];
        disk.content[at..at + len].fill(value);
        if let Some(changed) = &mut disk.changed {
            // Whole grains, at both ends.
            *changed += len + 2 * MIB;
        }
    }

    /// What was read is what changed, where there is no doubt, and the report says why not.
    fn check_report(&mut self, report: &Value) {
        let mut most = 0;
        for (number, disk) in self.disks.iter_mut().enumerate() {
            let reports = report["disks"].as_array().unwrap();
            let told = reports
                .iter()
                .find(|told| told["id"] == format!("disk{number}"))
                .unwrap();
            match disk.changed {
                Some(changed) => {
                    assert_eq!(told["read"], "changed", "{report}");
                    most += changed;
                }
                None => {
                    assert_eq!(told["read"], "all", "{report}");
                    assert!(told["why"].is_string(), "{report}");
                    most += disk.content.len();
                }
            }
            disk.changed = Some(0);
        }
        let read = report["bytes_read"].as_u64().unwrap();
        assert!(
            read <= most as u64,
            "{read} bytes read for {most} that changed"
        );
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        self.disks.iter().map(|disk| disk.content.clone()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((mut qemu, _)) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

fn create(args: &[&str]) {
    let mut command = Command::new("qemu-img");
    let status = command.args(["create", "-q"]).args(args).status().unwrap();
    assert!(status.success());
}
