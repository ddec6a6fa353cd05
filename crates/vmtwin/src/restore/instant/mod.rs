//! Instant restore: the guest starts at once, on overlays, and its blocks come in behind it.
//!
//! ```text
//!  vmtwin restore --instant ──starts──► keeper (the same program, a session of its own)
//!        │ shows what the keeper notes      │ restores, starts QEMU, serves, streams, ends
//!        ▼                                  ▼
//!  DIR/instant-progress.json     QEMU ─ DIR/disk0.qcow2 ─ over ─► DIR/disks.sock ─► repository
//! ```
//! The keeper holds the lock of the folder, and the repository's, for as long as it lives. Whatever
//! dies, the overlays hold what the guest wrote: `DIR/instant.json` says that they are begun and not
//! complete, and the same command goes on with them. A server that is gone makes the guest's reads
//! wait, not fail.
//!
//! The hand-over is `guard.release()` in the recipe: before it, whatever fails takes all back; after
//! it, nothing of the folder is ever taken back.

mod follow;
mod keeper;
mod overlay;
mod serve;
mod stream;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::RestoreError;

pub(crate) use follow::{Followed, follow, is_keeper, is_kept, start_keeper};
pub(crate) use keeper::{Keeper, Said, guest, let_boot, remove, say, started};
pub(super) use overlay::create as create_overlay;
pub(crate) use serve::Serving;

/// The record, which is there until all is local.
pub(crate) const RECORD: &str = "instant.json";
/// What the keeper notes of its work.
const PROGRESS: &str = "instant-progress.json";
/// The socket that the disks are served on.
pub(crate) const DISKS_SOCKET: &str = "disks.sock";
/// The keeper's own monitor of QEMU, so that the other is free for backups.
pub(super) const STREAM_SOCKET: &str = "stream.sock";
/// Disks that are no longer than this are copied at once: firmware's variables, for example.
pub(super) const SMALL_DISK_BYTES: u64 = 16 << 20;
/// Largest record or progress accepted, bytes.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What a folder holds that is being restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Id of the snapshot.
    pub(crate) snapshot: String,
    /// Id of the repository.
    pub(crate) repository: String,
    /// Disks that are overlays, by id; each is `ID.qcow2`.
    pub(crate) disks: Vec<String>,
    /// Where the guest's monitor is, if it is not a process of vmtwin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) monitor: Option<PathBuf>,
}

/// How far the keeper is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Bytes of overlays that need nothing under them any more.
    pub(crate) done_bytes: u64,
    /// Bytes of all overlays.
    pub(crate) total_bytes: u64,
    /// The last thing that went wrong; it is tried again.
    pub(crate) trouble: Option<String>,
}

impl Record {
    /// Reads the record of a folder; none where there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Record>, RestoreError> {
        read_json(&dir.join(RECORD))
    }

    /// Whether it is of the snapshot that is asked for, by its id, the beginning of it, or `latest`.
    pub(crate) fn check_is(&self, id: &str, dir: &Path) -> Result<(), RestoreError> {
        match id == "latest" || self.snapshot.starts_with(id) {
            true => Ok(()),
            false => Err(RestoreError::OtherRestore {
                dir: dir.to_owned(),
                snapshot: self.snapshot.clone(),
            }),
        }
    }

    /// The image of a disk.
    pub(crate) fn image(dir: &Path, disk: &str) -> PathBuf {
        dir.join(format!("{disk}.qcow2"))
    }
}

/// The argument of QEMU that makes the keeper's monitor. No other process has it.
pub(super) fn monitor_argument(dir: &Path) -> String {
    let path = dir.join(STREAM_SOCKET).to_string_lossy().replace(',', ",,");
    format!("unix:{path},server=on,wait=off")
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RestoreError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RestoreError::file("open", path)(error)),
    };
    let mut text = Vec::new();
    let mut limited = io::Read::take(file, MAX_JSON_BYTES);
    let read = io::Read::read_to_end(&mut limited, &mut text);
    read.map_err(RestoreError::file("read", path))?;
    let parsed = serde_json::from_slice(&text).map_err(io::Error::from);
    parsed.map(Some).map_err(RestoreError::file("read", path))
}
