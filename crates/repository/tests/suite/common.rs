//! A repository in a temporary folder, stock restic beside it, and images made of numbers.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmtwin_repository::faulty::{FaultyStore, Limits};
use vmtwin_repository::{
    Extent, ExtentKind, ImageOptions, ImageSink, ImageSource, IngestOptions, LocalStore, Password,
    Progress, ProgressDelta, Repository, Snapshot, SnapshotMeta,
};

pub(crate) const PASSWORD: &str = "correct horse";

/// A fresh repository behind a store that can be made to fail.
pub(crate) struct TestRepository {
    pub(crate) folder: TempDir,
    pub(crate) store: Arc<FaultyStore>,
    pub(crate) repository: Repository,
}

impl TestRepository {
    pub(crate) fn new() -> Self {
        let folder = fast_folder();
        let local = Arc::new(LocalStore::new(folder.path().join("repo")));
        let store = Arc::new(FaultyStore::new(local, Limits::default()));
        let password = Password::from(PASSWORD);
        let repository = Repository::init_with(Arc::clone(&store) as _, &password).unwrap();
        Self {
            folder,
            store,
            repository,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    pub(crate) fn backup(&self, image: &TestImage, options: &ImageOptions) -> Snapshot {
        let backup = self.repository.start_backup(&small()).unwrap();
        backup
            .add_image("/disks/vda", image, options, &Quiet::default())
            .unwrap();
        backup.add_bytes("/machine.json", b"{}").unwrap();
        backup.finish(meta()).unwrap()
    }

    pub(crate) fn restic_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("restic");
        command
            .args(["--no-cache", "--repo"])
            .arg(self.path())
            .args(arguments)
            .env("RESTIC_PASSWORD", PASSWORD)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn restic(&self, arguments: &[&str]) -> Output {
        let output = self.restic_command(arguments).output();
        output.expect("these tests need `restic` installed, for example from its Debian package")
    }

    /// Runs restic, which must succeed; gives its standard output.
    pub(crate) fn restic_ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.restic(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "restic {arguments:?}: {errors}");
        output.stdout
    }

    pub(crate) fn check(&self) {
        let out = self.restic_ok(&["check", "--read-data"]);
        let out = String::from_utf8_lossy(&out);
        assert!(out.contains("no errors were found"), "{out}");
    }

    /// Waits for locks of backups that just ended on a store that failed meanwhile.
    pub(crate) fn wait_for_no_locks(&self) {
        let began = Instant::now();
        while !self.repository.locks().unwrap().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "a lock stays");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn packs(&self) -> usize {
        files(&self.path().join("data")).len()
    }
}

/// A temporary folder, in memory where there is such a file system: these tests make many small
/// backups, and waiting for a disk at each object shows nothing.
pub(crate) fn fast_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let in_memory = memory
        .is_dir()
        .then(|| tempfile::tempdir_in(memory).ok())
        .flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Small packs, so that small backups have several.
pub(crate) fn small() -> IngestOptions {
    IngestOptions {
        pack_bytes: 1 << 20,
        pack_buffers: 3,
        upload_threads: 2,
        ..IngestOptions::default()
    }
}

pub(crate) fn meta() -> SnapshotMeta {
    SnapshotMeta {
        tags: vec!["vm=web01".to_owned(), "consistency=state".to_owned()],
        paths: vec!["/vm/web01".to_owned()],
        ..SnapshotMeta::default()
    }
}

pub(crate) fn grain(kib: u32) -> ImageOptions {
    ImageOptions {
        grain_bytes: kib << 10,
        piece_bytes: Some(4 << 10),
        parent: None,
    }
}

/// Bytes that do not compress, from a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    data.truncate(length);
    data
}

/// An image in memory with known extents.
pub(crate) struct TestImage {
    pub(crate) data: Vec<u8>,
    /// Ends and kinds of the extents, ascending. What lies behind the last is data.
    pub(crate) extents: Vec<(u64, ExtentKind)>,
    /// A read that touches this byte fails.
    pub(crate) broken_at: Option<u64>,
}

impl TestImage {
    pub(crate) fn new(data: Vec<u8>) -> Self {
        Self {
            data,
            extents: Vec::new(),
            broken_at: None,
        }
    }

    /// A third noise, a third text, a sixth zeros that are read, a sixth holes.
    pub(crate) fn mixed(seed: u64, length: usize) -> Self {
        let mut data = noise(seed, length);
        let (text, zeros) = (length / 3, length * 2 / 3);
        for (at, byte) in data[text..zeros].iter_mut().enumerate() {
            *byte = b"the quick brown fox "[at % 20] ^ ((at >> 13) as u8 & 7);
        }
        data[zeros..].fill(0);
        let hole = (length * 5 / 6) as u64;
        Self {
            data,
            extents: vec![(hole, ExtentKind::Data), (length as u64, ExtentKind::Hole)],
            broken_at: None,
        }
    }
}

impl ImageSource for TestImage {
    fn size_bytes(&self) -> u64 {
        self.data.len() as u64
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let found = self.extents.iter().find(|(end, _)| offset < *end);
        let (end, kind) = found
            .copied()
            .unwrap_or((self.size_bytes(), ExtentKind::Data));
        Ok(Extent {
            kind,
            len: end - offset,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + buf.len() as u64;
        if self.broken_at.is_some_and(|at| range.contains(&at)) {
            return Err(io::Error::other("bad sector"));
        }
        let kind = self.extent_at(offset)?.kind;
        assert!(
            !matches!(kind, ExtentKind::Hole | ExtentKind::Zero),
            "a hole was read"
        );
        buf.copy_from_slice(&self.data[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// A target in memory.
pub(crate) struct TestSink(pub(crate) std::sync::Mutex<Vec<u8>>);

impl TestSink {
    pub(crate) fn new(size: u64) -> Self {
        Self(std::sync::Mutex::new(vec![0; size as usize]))
    }
}

impl ImageSink for TestSink {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Counts progress; cancels when told to.
#[derive(Default)]
pub(crate) struct Quiet {
    pub(crate) processed: std::sync::atomic::AtomicU64,
    pub(crate) cancel: AtomicBool,
}

impl Progress for Quiet {
    fn advance(&self, delta: ProgressDelta) {
        self.processed
            .fetch_add(delta.bytes_processed, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::SeqCst)
    }
}
