//! Files out of snapshots: `snapshot ls` and `snapshot get`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmtwin_testkit::foreign::{Foreign, kernel, make_gpt, make_tree};
use vmtwin_testkit::{Accel, run};

use common::{Vmtwin, assert_failure, code, document, files, programs_in, text, told};

/// A QEMU that has disks and runs nothing.
struct Machine(Child);

impl Machine {
    fn start(vmtwin: &Vmtwin, disks: &[PathBuf]) -> Machine {
        let socket = vmtwin.path("qmp.sock");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-machine",
            "q35",
            "-m",
            "64",
        ]);
        qemu.arg("-qmp");
        qemu.arg(format!("unix:{},server=on,wait=off", socket.display()));
        for (number, disk) in disks.iter().enumerate() {
            let file = disk.display();
            qemu.arg("-blockdev").arg(format!(
                "driver=raw,node-name=n{number},file.driver=file,file.filename={file}"
            ));
            qemu.arg("-device");
            qemu.arg(format!("virtio-blk-pci,drive=n{number},id=disk{number}"));
        }
        let machine = Machine(qemu.stdin(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < end, "QEMU does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        vmtwin.ok(&["vm", "add", common::VM, "--qmp", text(&socket)]);
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The reader's options in every test.
fn reader(args: &[&str]) -> Vec<String> {
    let (kernel, modules) = kernel();
    let more = [
        "--kernel",
        text(&kernel),
        "--modules",
        text(&modules),
        "--accel",
        Accel::detect().name(),
    ];
    let words = args.iter().chain(&more);
    words.map(|word| (*word).to_owned()).collect()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn files_come_out_of_a_snapshot() {
    let vmtwin = Vmtwin::new();
    vmtwin.ok(&["init"]);
    let tree = vmtwin.path("tree");
    make_tree(&tree);
    let disks = [vmtwin.path("a.raw"), vmtwin.path("b.raw")];
    let parts = [(Foreign::Vfat, 40), (Foreign::Ext4, 64), (Foreign::Luks, 8)];
    make_gpt(&disks[0], &parts, &tree);
    Foreign::Btrfs.make(&disks[1], 260, &tree);
    let machine = Machine::start(&vmtwin, &disks);
    vmtwin.backup_as("crash", &[]);
    drop(machine);

    let run = |args: &[&str]| vmtwin.run(&strs(&reader(args)));
    let systems = document(&run(&["snapshot", "ls", "latest", "--json"]));
    let rows = systems["file_systems"].as_array().unwrap();
    let shown =
        |row: &serde_json::Value| format!("{} {} {}", row["disks"][0], row["name"], row["type"]);
    assert_eq!(
        rows.iter().map(shown).collect::<Vec<_>>(),
        [
            r#""disk0" "p1" "vfat""#,
            r#""disk0" "p2" "ext4""#,
            r#""disk0" "p3" "crypto_LUKS""#,
            r#""disk1" "whole" "btrfs""#
        ]
    );
    assert!(rows[2]["problem"].as_str().unwrap().contains("encrypted"));

    // The file system with an operating system is taken without being named.
    let listed = run(&["snapshot", "ls", "latest:disk0/srv"]);
    assert_eq!(code(&listed), 0);
    assert!(told(&listed).contains("absolute -> /etc/hostname"));
    assert!(!listed.stdout.contains(&0x1b), "{}", told(&listed));

    let to = vmtwin.path("out");
    let get = [
        "snapshot",
        "get",
        "latest:disk0/usr",
        "latest:disk0/srv",
        "--to",
        text(&to),
    ];
    let got = run(&get);
    assert_eq!(code(&got), 3, "{}", told(&got));
    assert!(told(&got).contains("srv/pipe: it is a pipe"));
    assert_same(&tree.join("usr"), &to.join("usr"));
    assert_eq!(files(&to.join("srv")).len(), 4);
    assert_failure(&run(&get), &["usr is there already", "--to"]);
    assert!(
        files(&to)
            .iter()
            .all(|path| !text_of(path).contains(".vmtwin-"))
    );

    let whole = run(&["snapshot", "get", "latest:disk1/etc/hostname", "--to", "-"]);
    assert_eq!(
        (code(&whole), whole.stdout.as_slice()),
        (0, &b"web01\n"[..])
    );
    let none = run(&["snapshot", "get", "latest:disk0/nothing", "--to", text(&to)]);
    assert_failure(&none, &["/nothing in p2 of disk0", "No such file"]);
    assert_failure(&run(&["snapshot", "ls", "latest:disk7"]), &["disk0, disk1"]);
    let wrong = run(&["snapshot", "ls", "latest:disk0", "--filesystem", "p9"]);
    assert_failure(
        &wrong,
        &["p1 (vfat, EFI), p2 (ext4, linux), p3 (crypto_LUKS)"],
    );
    let locked = run(&["snapshot", "ls", "latest:disk0", "--filesystem", "p3"]);
    assert_failure(&locked, &["encrypted"]);
    vmtwin.assert_nothing_left();

    killed_and_interrupted(&vmtwin);
    a_damaged_repository(&vmtwin);
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn assert_same(original: &Path, copy: &Path) {
    let mut diff = Command::new("diff");
    run(diff
        .args(["-r", "--no-dereference"])
        .arg(original)
        .arg(copy));
}

/// Neither leaves a machine; the files of a killed one go with the next.
fn killed_and_interrupted(vmtwin: &Vmtwin) {
    let args = reader(&["snapshot", "ls", "latest"]);
    for signal in [Signal::KILL, Signal::INT] {
        let mut command = vmtwin.command(&strs(&args));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let home = vmtwin.home();
        let appliance = || {
            programs_in(&home)
                .iter()
                .any(|l| l.contains("vmtwin-appliance"))
        };
        wait("the machine starts", appliance);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), (signal == Signal::INT).then_some(1));
        wait("the machine ends", || !appliance());
    }
    vmtwin.restic(&["unlock", "--remove-all"]);
    vmtwin.assert_nothing_left();
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + common::PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What cannot be read is an error, and never a file that is not whole.
fn a_damaged_repository(vmtwin: &Vmtwin) {
    let packs = files(&vmtwin.repo().join("data")).into_iter();
    let largest = packs.max_by_key(|pack| std::fs::metadata(pack).unwrap().len());
    // The lists of what is in the snapshot stay.
    let largest = largest.unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 4..bytes.len() / 4 * 3;
    bytes[middle].iter_mut().for_each(|byte| *byte = !*byte);
    std::fs::remove_file(&largest).unwrap();
    std::fs::write(&largest, bytes).unwrap();
    let to = vmtwin.path("damaged");
    let args = ["snapshot", "get", "latest:disk0/usr", "--to", text(&to)];
    let mut args = reader(&args);
    args.extend(["--filesystem".into(), "p2".into()]);
    assert_failure(&vmtwin.run(&strs(&args)), &["check --read-data"]);
}
