//! Files out of real file systems by real machines, compared with what was put in.
//!
//! This program is process 1 of the machines that it starts. Its tests run one after the other.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmtwin_appliance::{
    Appliance, ApplianceError, DiskSource, EntryKind, Extracted, Extraction, FileToWriter, Name,
    Settings, guest,
};
use vmtwin_testkit::foreign::{Foreign, STRANGE_NAME, kernel, make_gpt, make_tree};
use vmtwin_testkit::{Accel, Workdir, run};

const INIT: &str = "be-process-1";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == INIT) {
        guest::run();
    }
    let tests: [(&str, fn()); 4] = [
        ("every_file_system", every_file_system),
        ("a_damaged_journal", a_damaged_journal),
        ("what_is_missing_is_told", what_is_missing_is_told),
        ("a_machine_is_gone_at_once", a_machine_is_gone_at_once),
    ];
    if args.iter().any(|word| word == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return;
    }
    let filter = args.iter().find(|word| !word.starts_with('-'));
    for (name, test) in tests {
        if filter.is_none_or(|part| name.contains(part.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// Disks behind QEMU's own NBD server.
struct Disks {
    work: Workdir,
    servers: Vec<Child>,
    sources: Vec<DiskSource>,
    tree: PathBuf,
}

impl Disks {
    fn new() -> Disks {
        let work = Workdir::new();
        let tree = work.join("tree");
        make_tree(&tree);
        Disks {
            work,
            servers: Vec::new(),
            sources: Vec::new(),
            tree,
        }
    }

    /// Makes a disk and serves it; it cannot be written to.
    fn add(&mut self, make: impl FnOnce(&Path, &Path)) {
        let number = self.sources.len();
        let path = self.work.join(format!("disk{number}.raw"));
        make(&path, &self.tree);
        let socket = self.work.join(format!("{number}.sock"));
        let mut server = Command::new("qemu-nbd");
        server.args([
            "--read-only",
            "--persistent",
            "--format=raw",
            "--export-name=d",
            "-k",
        ]);
        let server = server.arg(&socket).arg(&path).stdin(Stdio::null()).spawn();
        self.servers.push(server.unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < end, "qemu-nbd does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.sources.push(DiskSource {
            socket,
            export: "d".into(),
        });
    }

    fn settings(&self) -> Settings {
        let scratch = self.work.join("scratch");
        fs::create_dir_all(&scratch).unwrap();
        let (kernel, modules) = kernel();
        Settings {
            program: std::env::current_exe().unwrap(),
            init_args: vec![INIT.into()],
            kernel: Some(kernel),
            modules: Some(modules),
            scratch,
            accel: Some(Accel::detect().name().into()),
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    fn machine(&self) -> Machine {
        let appliance = Appliance::start(&self.settings(), &self.sources);
        Machine {
            appliance: appliance.unwrap(),
            out: self.work.join("out"),
        }
    }

    fn tree(&self, path: &str) -> PathBuf {
        self.tree.join(path)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

struct Machine {
    appliance: Appliance,
    out: PathBuf,
}

impl Machine {
    /// The number of the file system of a name on a disk.
    fn on(&mut self, disk: usize, name: &str) -> usize {
        let systems = self.appliance.file_systems().unwrap();
        let found = systems
            .iter()
            .position(|one| one.disks == [disk] && one.name == name);
        found.unwrap_or_else(|| panic!("no {name} on {disk}: {systems:#?}"))
    }

    fn list(&mut self, system: usize, path: &[u8]) -> Result<Vec<String>, ApplianceError> {
        let (entry, entries) = self
            .appliance
            .list(system, &Name(path.to_vec()), |name, why| {
                panic!("{name} is skipped: {why}")
            })?;
        assert!(entry.kind == EntryKind::Folder || entries.is_empty());
        Ok(entries.iter().map(|entry| entry.name.to_string()).collect())
    }

    /// Copies a path out; gives where it is now.
    fn get(&mut self, system: usize, path: &str) -> Result<(PathBuf, Extracted), ApplianceError> {
        let _ = fs::remove_dir_all(&self.out);
        fs::create_dir(&self.out).unwrap();
        let mut progress = |_: &Extracted| {};
        let name = Name(b"copy".to_vec());
        let mut extraction = Extraction::new(&self.out, name, false, &mut progress)?;
        let path = Name(path.as_bytes().to_vec());
        self.appliance.get(system, &path, &mut extraction)?;
        Ok((self.out.join("copy"), extraction.finish()?))
    }

    fn assert_same(&mut self, system: usize, path: &str, original: &Path) {
        let (copy, _) = self.get(system, path).unwrap();
        run(Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(original)
            .arg(copy));
    }
}

fn every_file_system() {
    let mut disks = Disks::new();
    disks.add(|path, tree| {
        let parts = [
            (Foreign::Vfat, 40),
            (Foreign::Ext4, 100),
            (Foreign::Xfs, 310),
            (Foreign::Ntfs, 40),
            (Foreign::Swap, 8),
            (Foreign::Luks, 8),
        ];
        make_gpt(path, &parts, tree);
    });
    disks.add(|path, tree| Foreign::Lvm.make(path, 120, tree));
    disks.add(|path, tree| Foreign::Btrfs.make(path, 260, tree));
    disks.add(|path, _| {
        fs::File::create_new(path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap()
    });
    let mut machine = disks.machine();

    let systems = machine.appliance.file_systems().unwrap();
    let rows: Vec<String> = systems
        .iter()
        .map(|one| {
            let label = one.label.as_deref().unwrap_or("-");
            let problem = one.problem.as_deref().map_or("", |_| " !");
            format!("{:?} {} {} {label}{problem}", one.disks, one.name, one.kind)
        })
        .collect();
    assert_eq!(
        rows,
        [
            "[0] p1 vfat EFI",
            "[0] p2 ext4 linux",
            "[0] p3 xfs xfiles",
            "[0] p4 ntfs -",
            "[0] p5 swap - !",
            "[0] p6 crypto_LUKS - !",
            "[2] whole btrfs -",
            "[1] vg-0/data ext4 linux",
        ]
    );

    linux(&mut machine, &disks);
    for (disk, name) in [(1, "vg-0/data"), (2, "whole")] {
        let system = machine.on(disk, name);
        machine.assert_same(system, "/etc", &disks.tree("etc"));
        machine.assert_same(system, "/usr", &disks.tree("usr"));
    }
    let vfat = machine.on(0, "p1");
    machine.assert_same(vfat, "/etc", &disks.tree("etc"));
    let xfs = machine.on(0, "p3");
    machine.assert_same(xfs, "/noise", &disks.tree("usr/bin/noise"));
    let ntfs = machine.on(0, "p4");
    machine.assert_same(ntfs, "/noise", &disks.tree("usr/bin/noise"));
    let luks = machine.on(0, "p6");
    let told = machine.list(luks, b"/").unwrap_err().to_string();
    assert!(told.contains("encrypted"), "{told}");
    let told = machine.list(99, b"/").unwrap_err().to_string();
    assert!(told.contains("no such file system"), "{told}");
}

/// All that can be wrong with names, links and files.
fn linux(machine: &mut Machine, disks: &Disks) {
    let system = machine.on(0, "p2");
    let srv = machine.list(system, b"srv/").unwrap();
    let strange = "we\\xffird\\n\\u{1b}[2Jname";
    assert_eq!(srv, ["absolute", "holes", "out", "pipe", strange]);
    // Links lead where they would lead the guest, and never out of its file system.
    let mut text = Vec::new();
    let mut receiver = FileToWriter::new(&mut text);
    let path = Name(b"/srv/absolute".to_vec());
    machine.appliance.get(system, &path, &mut receiver).unwrap();
    assert_eq!(receiver.finish().unwrap(), None);
    assert_eq!(text, b"web01\n");
    let told = machine.get(system, "/srv/out").unwrap_err().to_string();
    assert!(told.contains("No such file"), "{told}");
    let told = machine.get(system, "/etc/nothing").unwrap_err().to_string();
    assert!(told.contains("No such file"), "{told}");

    let (copy, done) = machine.get(system, "/srv").unwrap();
    assert_eq!((done.files, done.links, done.skipped_count), (2, 2, 1));
    assert_eq!(done.skipped[0].0, Name(b"copy/pipe".to_vec()));
    let target = fs::read_link(copy.join("out")).unwrap();
    assert_eq!(target, Path::new("../../../../etc/passwd"));
    let holes = fs::metadata(copy.join("holes")).unwrap();
    assert!(holes.len() == 40 << 20 && holes.blocks() * 512 < 1 << 20);
    run(Command::new("cmp")
        .arg(disks.tree("srv/holes"))
        .arg(copy.join("holes")));
    let strange = copy.join(std::ffi::OsStr::from_bytes(STRANGE_NAME));
    assert_eq!(fs::read(strange).unwrap(), b"strange");

    machine.assert_same(system, "/usr", &disks.tree("usr"));
    let (copy, _) = machine.get(system, "/etc/hostname").unwrap();
    let (copied, original) = (
        fs::metadata(copy).unwrap(),
        fs::metadata(disks.tree("etc/hostname")).unwrap(),
    );
    assert_eq!(copied.permissions().mode(), original.permissions().mode());
    assert_eq!(copied.mtime(), original.mtime());
}

/// A file system that was not closed, with a journal that is nonsense, is read without it.
fn a_damaged_journal() {
    let mut disks = Disks::new();
    disks.add(|path, tree| {
        Foreign::Ext4.make(path, 64, tree);
        let debugfs = |commands: &str| {
            let mut debugfs = Command::new("/sbin/debugfs");
            let output = run(debugfs.args(["-w", "-R", commands]).arg(path));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        debugfs("feature needs_recovery");
        let blocks = debugfs("blocks <8>");
        let first: u64 = blocks.split_whitespace().next().unwrap().parse().unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        let block_bytes = 1024;
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 1024], first * block_bytes)
            .unwrap();
    });
    let mut machine = disks.machine();
    let system = machine.on(0, "whole");
    machine.assert_same(system, "/usr", &disks.tree("usr"));
    let (_, done) = machine.get(system, "/etc").unwrap();
    assert_eq!(done.skipped_count, 1);
    assert!(done.skipped[0].1.contains("without its journal"));
}

fn what_is_missing_is_told() {
    let mut disks = Disks::new();
    disks.add(|path, tree| Foreign::Vfat.make(path, 40, tree));
    let fails = |settings: Settings, sources: &[DiskSource], words: &str| {
        let told = match Appliance::start(&settings, sources) {
            Ok(_) => panic!("it starts"),
            Err(error) => error.to_string(),
        };
        assert!(told.contains(words), "{told}");
        assert_eq!(fs::read_dir(&settings.scratch).unwrap().count(), 0);
    };
    let good = disks.settings();
    let no_kernel = Settings {
        kernel: Some("/nowhere/vmlinuz".into()),
        ..good.clone()
    };
    fails(no_kernel, &disks.sources, "/nowhere/vmlinuz");
    let no_modules = Settings {
        modules: Some("/nowhere".into()),
        ..good.clone()
    };
    fails(no_modules, &disks.sources, "/nowhere");
    let nobody = DiskSource {
        socket: "/nowhere/sock".into(),
        export: "d".into(),
    };
    fails(good.clone(), &[nobody], "/nowhere/sock");
    let many = vec![disks.sources[0].clone(); 25];
    fails(good.clone(), &many, "25 disks");
    // A program that is no process 1: the kernel ends, and with it the machine.
    let wrong = Settings {
        program: "/bin/true".into(),
        ..good
    };
    fails(wrong, &disks.sources, "ended");
}

/// Cancelled while it boots, and dropped while it runs.
fn a_machine_is_gone_at_once() {
    let mut disks = Disks::new();
    disks.add(|path, tree| Foreign::Vfat.make(path, 40, tree));
    let settings = disks.settings();
    let cancel = Arc::clone(&settings.cancel);
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        cancel.store(true, Ordering::Relaxed);
    });
    let start = Instant::now();
    let result = Appliance::start(&settings, &disks.sources);
    assert!(matches!(result, Err(ApplianceError::Cancelled)));
    assert!(start.elapsed() < Duration::from_secs(60));
    canceller.join().unwrap();
    assert_nothing_runs(&settings.scratch);
    drop(disks.machine());
    assert_nothing_runs(&settings.scratch);
}

fn assert_nothing_runs(scratch: &Path) {
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0);
    let words = scratch.as_os_str().as_bytes();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let found = line.windows(words.len()).any(|part| part == words);
        assert!(!found, "{} runs", String::from_utf8_lossy(&line));
    }
}
