//! Guests that run before their disks are here, and what becomes of them when something dies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_hypervisor::process::{ProcessId, arguments, with_argument};
use vmtwin_testkit::{DiskFormat, DiskSpec, Ext4State, Guest, Log, Mode, SmallTmpfs, run};

use common::{PATIENCE, Restored, Vmtwin, code, programs_in, text, told};

/// A disk that no guest writes to, MiB.
const STILL_MIB: usize = 48;

/// A guest with a ledger on its first disk, whose second holds noise; backed up, and gone.
struct Case {
    vmtwin: Vmtwin,
    guest: Guest,
    still: PathBuf,
    dir: PathBuf,
}

impl Case {
    fn new(consistency: &str) -> Case {
        let vmtwin = Vmtwin::new();
        let still = vmtwin.path("still.raw");
        std::fs::write(&still, noise(STILL_MIB << 20)).unwrap();
        let disks = [
            DiskSpec::qcow2(64),
            DiskSpec::existing(still.clone(), DiskFormat::Raw),
        ];
        let guest = Guest::builder().mode(Mode::Ext4).disks(disks).start();
        guest.wait_for("ack n=20", PATIENCE);
        vmtwin.ok(&["init"]);
        vmtwin.add(&guest);
        vmtwin.backup_as(consistency, &[]);
        guest.kill();
        let dir = vmtwin.path("back");
        Case {
            vmtwin,
            guest,
            still,
            dir,
        }
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let args = ["restore", "latest", "--instant", "--to", text(&self.dir)];
        [&args, more].concat()
    }

    fn restore(&self, more: &[&str]) -> Value {
        let mut args = self.arguments(more);
        args.push("--json");
        let output = self.vmtwin.run(&args);
        assert!([0, 3].contains(&code(&output)), "{}", told(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn log(&self) -> Log {
        Log::new(self.dir.join("console.log"))
    }

    fn disk(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.qcow2"))
    }

    fn is_begun(&self) -> bool {
        self.dir.join("instant.json").exists()
    }

    /// Waits for so many more lines of the guest, and gives the number of the last.
    fn wait_for_more(&self, more: u64) -> u64 {
        let log = self.log();
        let before = log.acknowledged().last().copied().unwrap_or(0);
        let end = Instant::now() + PATIENCE;
        loop {
            let now = log.acknowledged().last().copied().unwrap_or(0);
            if now >= before + more {
                return now;
            }
            assert!(Instant::now() < end, "no more lines: {}", log.tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn keeper(&self) -> Option<ProcessId> {
        let is_keeper =
            |p: &ProcessId| arguments(p.pid).is_ok_and(|all| all[0] == "vmtwin-instant-keeper");
        with_argument(&self.dir).into_iter().find(is_keeper)
    }

    fn qemu(&self) -> Option<ProcessId> {
        with_argument(&self.dir.join("stream.sock")).pop()
    }

    /// Nothing is under the disks, and they hold what they must.
    fn assert_complete(&self, acknowledged: u64) {
        assert!(!self.is_begun());
        for disk in ["disk0", "disk1"] {
            let mut info = Command::new("qemu-img");
            let info = run(info.args(["info", "--output=json"]).arg(self.disk(disk)));
            let info: Value = serde_json::from_slice(&info.stdout).unwrap();
            assert!(info.get("backing-filename").is_none(), "{info}");
        }
        let mut compare = Command::new("qemu-img");
        run(compare
            .arg("compare")
            .arg(&self.still)
            .arg(self.disk("disk1")));
        Ext4State::read(self.disk("disk0"), DiskFormat::Qcow2).assert_holds(acknowledged);
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        for process in self.keeper().into_iter().chain(self.qemu()) {
            let _ = process.kill(PATIENCE);
        }
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let words = (0..bytes / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn kill(process: Option<ProcessId>) {
    process.expect("a process").kill(PATIENCE).unwrap();
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_state_goes_on_at_once_and_needs_no_repository_in_the_end() {
    let case = Case::new("state");
    let at_backup = case.guest.log().acknowledged().last().copied().unwrap();
    let report = case.restore(&[]);
    assert_eq!(report["local"], true, "{report}");
    let restored = Restored::of_report(&report);
    assert!(case.keeper().is_none());
    assert_eq!(
        programs_in(&case.dir).len(),
        1,
        "{:?}",
        programs_in(&case.dir)
    );
    let locks = std::fs::read_dir(case.vmtwin.repo().join("locks")).unwrap();
    assert_eq!(locks.count(), 0);
    std::fs::rename(case.vmtwin.repo(), case.vmtwin.path("away")).unwrap();
    let last = case.wait_for_more(20);
    // It did not boot: it went on from the point.
    assert!(case.log().acknowledged()[0] > 1 && last <= at_backup + 2000);
    drop(restored);
    case.assert_complete(last);
}

#[test]
fn whatever_dies_nothing_that_was_written_is_lost() {
    let case = Case::new("crash");
    let slow = ["--detach", "--limit-mib-per-s", "1"];
    let report = case.restore(&slow);
    assert_eq!(report["local"], false);
    let qemu = case.qemu();
    case.wait_for_more(5);

    // A command that looks on may die.
    let mut looking = case.vmtwin.command(&case.arguments(&[]));
    let mut looking = looking.stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    looking.kill().unwrap();
    looking.wait().unwrap();
    case.wait_for_more(5);

    // Ctrl-C of one that looks on leaves all to itself.
    let mut looking = case.vmtwin.command(&case.arguments(&[]));
    let mut looking = looking.stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pid = Pid::from_raw(i32::try_from(looking.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(looking.wait().unwrap().code(), Some(3));
    case.wait_for_more(5);

    eprintln!("the repository is away for a while");
    let progress = case.dir.join("instant-progress.json");
    wait_until("nothing comes in", || progress.exists());
    let away = case.vmtwin.path("away");
    std::fs::rename(case.vmtwin.repo(), &away).unwrap();
    wait_until("nothing is said of it", || {
        std::fs::read_to_string(&progress).is_ok_and(|text| text.contains("cannot be read"))
    });
    std::fs::rename(&away, case.vmtwin.repo()).unwrap();
    case.wait_for_more(5);
    // What was an error to the guest would have made its file system read-only, or the job end.
    wait_until("it does not go on", || {
        std::fs::read_to_string(&progress).is_ok_and(|text| text.contains("null"))
    });

    // Another snapshot has no place here, whether a keeper lives or not.
    let other = ["restore", "00000000", "--instant", "--to", text(&case.dir)];
    case.vmtwin.fails(&other, &["not complete"]);

    eprintln!("the keeper dies");
    kill(case.keeper());
    std::thread::sleep(Duration::from_secs(1));
    let report = case.restore(&slow);
    assert!(report["running"].is_null(), "{report}");
    assert_eq!(case.qemu(), qemu);
    case.wait_for_more(10);

    eprintln!("all die");
    kill(case.keeper());
    kill(case.qemu());
    assert!(case.is_begun(), "it was too fast for this test");
    let before = case.log().acknowledged().last().copied().unwrap();
    case.restore(&slow);
    assert_ne!(case.qemu(), qemu);
    assert!(case.wait_for_more(10) > before);

    eprintln!("all die, and then the keeper before the guest boots");
    kill(case.keeper());
    kill(case.qemu());
    let before = case.log().acknowledged().last().copied().unwrap();
    let mut command = case.vmtwin.command(&case.arguments(&slow));
    command.env("VMTWIN_FAILPOINT", "resume=kill");
    assert_eq!(code(&command.output().unwrap()), 1);
    assert!(case.qemu().is_some());
    case.restore(&slow);
    assert!(case.wait_for_more(10) > before);

    // A folder that holds one restore takes no other.
    assert!(case.is_begun());
    let busy = ["restore", "latest", "--run", "--to", text(&case.dir)];
    case.vmtwin.fails(&busy, &[]);

    kill(case.keeper());
    let report = case.restore(&[]);
    assert_eq!(report["local"], true, "{report}");
    let last = case.wait_for_more(10);
    kill(case.qemu());
    case.assert_complete(last);
    wait_until("something runs", || programs_in(&case.dir).is_empty());
}

#[test]
fn a_guest_that_ends_early_leaves_whole_disks() {
    let case = Case::new("crash");
    case.restore(&["--detach", "--limit-mib-per-s", "1"]);
    let last = case.wait_for_more(5);
    assert!(case.is_begun(), "it was too fast for this test");
    kill(case.qemu());
    wait_until("it is not completed", || !case.is_begun());
    wait_until("the keeper stays", || case.keeper().is_none());
    case.assert_complete(last);
}

/// What fails before the guest runs leaves nothing.
#[test]
fn a_start_that_fails_is_taken_back() {
    let case = Case::new("crash");
    for action in ["fail", "kill"] {
        let args = case.arguments(&[]);
        let mut command = case.vmtwin.command(&args);
        command.env("VMTWIN_FAILPOINT", format!("resume={action}"));
        let output = command.output().unwrap();
        assert_eq!(code(&output), 1, "{}", told(&output));
        wait_until("something is left", || !Path::exists(&case.dir));
        // The keeper releases the repository's lock after it has said what failed.
        wait_until("something runs", || programs_in(&case.dir).is_empty());
    }
    // A folder that the disks would fill while the guest runs; half of them, and no more, fits.
    let Some(small) = SmallTmpfs::mount(STILL_MIB as u64 * 512) else {
        return;
    };
    let dir = small.path().join("back");
    let args = ["restore", "latest", "--instant", "--to", text(&dir)];
    case.vmtwin
        .fails(&args, &["the disks need up to", "--force"]);
    wait_until("something is left", || !Path::exists(&dir));
}
