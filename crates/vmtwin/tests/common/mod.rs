//! The binary with a home of its own, and what tests ask of it and of stock restic.

#![allow(dead_code, reason = "every test file uses its own part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

pub(crate) mod agents;
pub(crate) mod inside;
pub(crate) mod lab;
pub(crate) mod serve;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_hypervisor::process::ProcessId;
use vmtwin_testkit::{DiskFormat, DiskLedger, DiskSpec, Guest, Log, Mode, Workdir};

/// Password of every test's repository.
pub(crate) const PASSWORD: &str = "correct horse";
/// Name of the guest in the table.
pub(crate) const VM: &str = "web01";
/// For what takes no time, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary, its home folder, and its repository.
pub(crate) struct Vmtwin {
    work: Workdir,
    repo: PathBuf,
    /// More variables for the binary and for restic.
    more: Vec<(&'static str, String)>,
}

impl Vmtwin {
    /// An empty home; the repository is to be in it.
    pub(crate) fn new() -> Vmtwin {
        let work = Workdir::new();
        let repo = work.join("repo");
        Vmtwin {
            work,
            repo,
            more: Vec::new(),
        }
    }

    /// The same with a repository and `guest` in the table.
    pub(crate) fn with_guest(guest: &Guest) -> Vmtwin {
        let vmtwin = Vmtwin::new();
        vmtwin.ok(&["init"]);
        vmtwin.add(guest);
        vmtwin
    }

    /// A home with a repository elsewhere.
    pub(crate) fn with_repo(repo: PathBuf) -> Vmtwin {
        Vmtwin {
            repo,
            ..Vmtwin::new()
        }
    }

    /// A home with a repository in S3; it is at `url`, and these variables lead to it.
    pub(crate) fn with_s3(url: &str, more: Vec<(&'static str, String)>) -> Vmtwin {
        Vmtwin {
            repo: PathBuf::from(url),
            more,
            ..Vmtwin::new()
        }
    }

    pub(crate) fn add(&self, guest: &Guest) {
        self.ok(&["vm", "add", VM, "--qmp", text(guest.qmp_path())]);
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.work.join("home")
    }

    pub(crate) fn repo(&self) -> &Path {
        &self.repo
    }

    /// A path beside the home folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// A command, for what [`Vmtwin::run`] does not offer.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmtwin"));
        command
            .args(args)
            // The machine's own says nothing here.
            .env("VMTWIN_CONFIG", "/dev/null")
            .env("VMTWIN_HOME", self.home())
            .env("VMTWIN_REPO", &self.repo)
            .env("VMTWIN_PASSWORD", PASSWORD)
            .envs(self.more.clone())
            .env_remove("VMTWIN_FAILPOINT")
            .env_remove("VMTWIN_STEPS");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("starting vmtwin")
    }

    /// Runs it to a good end.
    pub(crate) fn ok(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", told(&output));
        output
    }

    /// Runs it to a good end and returns its document.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        document(&self.ok(&args))
    }

    /// Runs it to exit code 1 with all of `words` in what it says; returns that.
    pub(crate) fn fails(&self, args: &[&str], words: &[&str]) -> String {
        assert_failure(&self.run(args), words)
    }

    /// The report of one good backup of memory and disks.
    pub(crate) fn backup(&self, more: &[&str]) -> Value {
        self.backup_as("state", more)
    }

    /// The report of one good backup of this consistency.
    pub(crate) fn backup_as(&self, consistency: &str, more: &[&str]) -> Value {
        let args = [&["backup", VM, "--consistency", consistency], more].concat();
        let reports = self.json(&args);
        assert_eq!(reports.as_array().map(Vec::len), Some(1), "{reports}");
        reports[0].clone()
    }

    /// Ids of the snapshots that are listed.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let list = self.json(&["snapshot", "list"]);
        let ids = list.as_array().unwrap().iter();
        ids.map(|row| row["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Stock restic on the repository, to a good end.
    pub(crate) fn restic(&self, args: &[&str]) -> Output {
        let output = Command::new("restic")
            .args(args)
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_REPOSITORY", &self.repo)
            .env("RESTIC_CACHE_DIR", self.work.join("restic-cache"))
            .envs(self.more.clone())
            .output()
            .expect("starting restic");
        assert_eq!(code(&output), 0, "restic {args:?}: {}", told(&output));
        output
    }

    /// Panics if a backup left files in the home folder or locks in the repository.
    pub(crate) fn assert_nothing_left(&self) {
        self.assert_no_files_left();
        let locks = files(&self.repo.join("locks"));
        assert!(locks.is_empty(), "locks left: {locks:?}");
    }

    /// Panics if files are left in the home folder.
    pub(crate) fn assert_no_files_left(&self) {
        for folder in ["run", "spool"] {
            let left = files(&self.home().join(folder));
            assert!(left.is_empty(), "left in {folder}: {left:?}");
        }
    }

    /// The flag of the table that says that the guest has to be resumed.
    pub(crate) fn resume_flag(&self) -> bool {
        let table = self.json(&["vm", "list"]);
        table[0]["resume_flag"].as_bool().expect("a resume flag")
    }

    /// Restores the disks of a snapshot as raw images and reads their ledgers.
    pub(crate) fn restored_ledgers(&self, id: &str, to: &str) -> Vec<DiskLedger> {
        let dir = self.path(to);
        let args = ["restore", id, "--to", text(&dir), "--format", "raw"];
        let report = self.json(&args);
        let disks = report["disks"].as_array().unwrap().iter();
        let paths = disks.map(|disk| PathBuf::from(disk["path"].as_str().unwrap()));
        paths
            .map(|path| DiskLedger::read(path, DiskFormat::Raw))
            .collect()
    }
}

/// The guest of most tests: under load, a qcow2 disk and a raw one.
pub(crate) fn loaded_guest() -> Guest {
    let disks = [DiskSpec::qcow2(48), DiskSpec::raw(32)];
    let guest = Guest::builder().mode(Mode::Load).disks(disks).start();
    guest.wait_for_next_tick(PATIENCE);
    guest
}

/// A QEMU that a restore started. It ends with this value.
pub(crate) struct Restored {
    process: ProcessId,
    pub(crate) log: Log,
}

impl Restored {
    /// Takes it from a restore's report.
    pub(crate) fn of_report(report: &Value) -> Restored {
        let running = &report["running"];
        let pid = running["pid"].as_u64().expect("a pid in the report");
        let log = running["console_log"].as_str().expect("a console log");
        Restored {
            process: ProcessId::of(u32::try_from(pid).unwrap()).expect("a process"),
            log: Log::new(log),
        }
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = self.process.kill(PATIENCE);
    }
}

/// What the plan of a node, in the report of a restore or a validation, does with a thing.
pub(crate) fn action<'a>(node: &'a Value, kind: &str, name: &str) -> &'a str {
    let mut items = node["plan"]["items"].as_array().unwrap().iter();
    let found = items.find(|item| item["kind"] == kind && item["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {kind} {name}: {node}"));
    found["action"].as_str().unwrap()
}

/// Panics unless the guest runs within two seconds.
pub(crate) fn assert_runs_soon(guest: &Guest, what: &str) {
    let end = Instant::now() + Duration::from_secs(2);
    while guest.test_qmp().status() != "running" {
        assert!(Instant::now() < end, "{what}: the guest does not run");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Panics unless the output is that of a failure that says all of `words`; returns what it says.
pub(crate) fn assert_failure(output: &Output, words: &[&str]) -> String {
    let told = told(output);
    assert_eq!(code(output), 1, "{told}");
    for word in words {
        assert!(told.contains(word), "no '{word}' in: {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// The exit code; -1 for a signal.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {}", told(output)))
}

/// Both outputs as one text.
pub(crate) fn told(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// All files of a folder and those in it; none where there is no folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Set in a test's second process, which is alone in a network namespace.
const INSIDE: &str = "VMTWIN_TEST_INSIDE";

/// Whether this process has a network namespace of its own; if not, runs the test of this name
/// again in one, as root of it.
pub(crate) fn in_a_network_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--"]);
    command.arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]);
    let status = command.env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "see above");
    false
}

/// Command lines of processes that name the folder.
pub(crate) fn programs_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text(dir)))
        .collect()
}
