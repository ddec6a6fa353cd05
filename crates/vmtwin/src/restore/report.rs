//! What a restore did.

use std::path::PathBuf;

use serde::Serialize;

use super::request::ImageFormat;

/// A finished restore.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// Id of the snapshot.
    pub snapshot: String,
    /// Name of the guest: the new one, where one was asked for.
    pub vm: String,
    /// Folder that holds everything, absolute.
    pub dir: PathBuf,
    /// Restored disks.
    pub disks: Vec<RestoredDiskReport>,
    /// Restored memory, where it was.
    pub memory: Option<RestoredMemory>,
    /// Further files.
    pub files: Vec<PathBuf>,
    /// The guest, where it was started.
    pub running: Option<RunningGuest>,
    /// What may differ from what the user expects.
    pub warnings: Vec<String>,
    /// Time it took.
    pub seconds: f64,
}

/// A restored disk.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredDiskReport {
    /// Its id.
    pub id: String,
    /// Where it is, absolute.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Virtual size.
    pub size_bytes: u64,
    /// Bytes written; the rest is zero.
    pub written_bytes: u64,
}

/// Restored memory.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredMemory {
    /// The stream's file, for `-incoming file:`; `None` where QEMU took it at once.
    pub path: Option<PathBuf>,
    /// Length of the stream.
    pub stream_bytes: u64,
}

/// A guest that was started.
#[derive(Debug, Clone, Serialize)]
pub struct RunningGuest {
    /// Process id of QEMU.
    pub pid: u32,
    /// Its QMP socket.
    pub qmp_socket: PathBuf,
    /// What its serial console prints.
    pub console_log: PathBuf,
    /// What QEMU prints.
    pub qemu_log: PathBuf,
    /// Run state, QEMU's word.
    pub run_state: String,
    /// What was changed against the old machine, and why.
    pub changes: Vec<String>,
}
