//! A repository with made-up snapshots.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmtwin_hypervisor::launch::Network;
use vmtwin_repository::{
    Backup, Extent, ExtentKind, ImageOptions, ImageSource, IngestOptions, Location, NoProgress,
    Password, Repository, Snapshot, SnapshotMeta,
};

use crate::content::{MACHINE_JSON, SNAPSHOT_JSON, disk_dir};
use crate::restore::error::RestoreError;
use crate::restore::{Phase, RestoreProgress, RestoreReport, RestoreRequest, restore};

/// Length of the made-up disk.
pub(super) const DISK_BYTES: usize = 6 << 20;

/// Bytes in memory as an image.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl ImageSource for Bytes<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<Extent> {
        Ok(Extent {
            kind: ExtentKind::Data,
            len: self.size_bytes() - offset_bytes,
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset_bytes).map_err(io::Error::other)?;
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }
}

/// A repository, and a folder to restore to.
pub(super) struct Fixture {
    pub(super) repository: Repository,
    pub(super) dir: TempDir,
}

impl Fixture {
    pub(super) fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(dir.path().join("repo").to_str().unwrap()).unwrap();
        let repository = Repository::init(&location, &Password::new("secret")).unwrap();
        Fixture { repository, dir }
    }

    pub(super) fn backup(&self) -> Backup {
        self.repository
            .start_backup(&IngestOptions::default())
            .unwrap()
    }

    /// A snapshot with one disk, `disk0`, and lists as given.
    pub(super) fn snapshot(&self, content: &Value, machine: &Value) -> Snapshot {
        let backup = self.backup();
        let (options, disk) = (ImageOptions::default(), disk_bytes());
        backup
            .add_image(&disk_dir("disk0"), &Bytes(&disk), &options, &NoProgress)
            .unwrap();
        finish(backup, content, machine)
    }

    /// Where restores go.
    pub(super) fn target(&self) -> PathBuf {
        self.dir.path().join("restored")
    }

    pub(super) fn request(&self) -> RestoreRequest {
        request(&self.target())
    }

    pub(super) fn restore(
        &self,
        snapshot: &Snapshot,
        request: &RestoreRequest,
    ) -> Result<RestoreReport, RestoreError> {
        restore(
            &self.repository,
            snapshot,
            request,
            &NoRestoreProgress,
            &|| false,
        )
    }
}

pub(super) fn request(dir: &Path) -> RestoreRequest {
    RestoreRequest {
        dir: dir.to_owned(),
        format: None,
        force: false,
        instant: false,
        monitor: None,
        run: false,
        hold: false,
        network: Network::None,
        name: None,
        accel: None,
        disks: None,
        memory: false,
        guard: None,
    }
}

/// Adds the lists, and ends the backup.
pub(super) fn finish(backup: Backup, content: &Value, machine: &Value) -> Snapshot {
    backup
        .add_bytes(SNAPSHOT_JSON, content.to_string().as_bytes())
        .unwrap();
    backup
        .add_bytes(MACHINE_JSON, machine.to_string().as_bytes())
        .unwrap();
    backup.finish(SnapshotMeta::default()).unwrap()
}

/// Data here and there, with zeros between that are longer and shorter than a grain.
pub(super) fn disk_bytes() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    let mut state = 1u32;
    for range in [
        0..70_000,
        2_000_000..2_000_001,
        3 << 20..4 << 20,
        DISK_BYTES - 1..DISK_BYTES,
    ] {
        for byte in &mut disk[range] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8 | 1;
        }
    }
    disk
}

pub(super) fn content() -> Value {
    json!({
        "format": 1,
        "vm": "tiny",
        "consistency": "crash",
        "time": "2024-01-01T00:00:00Z",
        "run_state": "running",
        "disks": [{"id": "disk0", "size_bytes": DISK_BYTES, "format": "vmdk"}],
        "memory": null,
    })
}

pub(super) fn machine() -> Value {
    json!({
        "format": 1,
        "name": "tiny",
        "uuid": "00000000-0000-0000-0000-000000000000",
        "qemu_version": "10.0.2",
        "machine_type": "pc-q35-10.0",
        "run_state": "running",
        "memory_bytes": 1 << 20,
        "pid": 1,
        "uid": 0,
        "cwd": "/",
        "args": ["/bin/sh", "-c", "true"],
        "disks": [],
        "files": [],
        "memory_blockers": [],
        "blockers": [],
    })
}

/// Names of what is in a folder, sorted; none if there is no folder.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Hears nothing.
pub(super) struct NoRestoreProgress;

impl RestoreProgress for NoRestoreProgress {
    fn begin(&self, _phase: Phase<'_>, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}
}
