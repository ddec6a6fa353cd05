//! Disks of a snapshot over NBD: judged by libnbd's tools and QEMU's against a restore.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_testkit::run;

use common::{Vmtwin, files, loaded_guest, text};

/// An export that runs, and its document. It ends with this value.
struct Export {
    child: Child,
    document: Value,
}

impl Export {
    fn start(vmtwin: &Vmtwin, args: &[&str]) -> Export {
        let mut command = vmtwin.command(&[&["export"], args, &["--json"]].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut document = String::new();
        // The document is complete while the server still runs.
        while !document.ends_with("\n}\n") {
            document.push_str(&lines.next().expect("a document").unwrap());
            document.push('\n');
        }
        Export {
            child,
            document: serde_json::from_str(&document).unwrap(),
        }
    }

    fn uri(&self, disk: &str) -> String {
        let rows = self.document["exports"].as_array().unwrap();
        let row = rows.iter().find(|row| row["disk"] == disk).expect(disk);
        row["uri"].as_str().unwrap().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(mut self) {
        self.signal(Signal::INT);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_exported_is_what_is_restored() {
    let guest = loaded_guest();
    let vmtwin = Vmtwin::with_guest(&guest);
    let id = vmtwin.backup_as("crash", &[])["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    guest.kill();
    let dir = vmtwin.path("restored");
    vmtwin.ok(&["restore", &id, "--to", text(&dir), "--format", "raw"]);

    let export = Export::start(&vmtwin, &[&id]);
    let info = run(Command::new("nbdinfo").args(["--json", "--list", &export.uri("disk0")]));
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["exports"].as_array().unwrap().len(), 2);
    for disk in ["disk0", "disk1"] {
        let restored = dir.join(format!("{disk}.raw"));
        let compare = ["compare", "-f", "raw", "-F", "raw", text(&restored)];
        run(Command::new("qemu-img").args(compare).arg(export.uri(disk)));
        let copy = vmtwin.path(&format!("{disk}.copy"));
        run(Command::new("nbdcopy").args([&export.uri(disk), text(&copy)]));
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(&restored).unwrap());
    }
    // What is being read cannot be removed meanwhile.
    assert_eq!(files(&vmtwin.repo().join("locks")).len(), 1);
    export.interrupt();
    vmtwin.assert_nothing_left();

    killed_exports_are_cleaned_up(&vmtwin, &id);
    places_to_listen(&vmtwin, &id);
}

fn killed_exports_are_cleaned_up(vmtwin: &Vmtwin, id: &str) {
    let export = Export::start(vmtwin, &[id]);
    export.signal(Signal::KILL);
    drop(export);
    assert_eq!(files(&vmtwin.home().join("run")).len(), 1);
    Export::start(vmtwin, &[id]).interrupt();
    assert!(files(&vmtwin.home().join("run")).is_empty());
}

fn places_to_listen(vmtwin: &Vmtwin, id: &str) {
    let socket = vmtwin.path("a disk.sock");
    let args = [id, "--disk", "disk1", "--socket", text(&socket)];
    let export = Export::start(vmtwin, &args);
    run(Command::new("nbdinfo").arg(export.uri("disk1")));
    vmtwin.fails(&[&["export"], &args[..]].concat(), &["is there already"]);
    export.interrupt();
    assert!(!socket.exists());

    let export = Export::start(vmtwin, &[id, "--listen", "127.0.0.1:0"]);
    run(Command::new("nbdinfo").arg(export.uri("disk0")));
    export.interrupt();
    let remote = ["export", id, "--listen", "0.0.0.0:0"];
    vmtwin.fails(&remote, &["--allow-remote"]);
    vmtwin.fails(&["export", id, "--disk", "none"], &["disk0, disk1"]);
}
