//! What a restore did.

use std::path::PathBuf;

use serde::Serialize;

use super::request::ImageFormat;

/// A finished restore.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RestoreReport {
    /// Id of the snapshot.
    pub(crate) snapshot: String,
    /// Name of the guest: the new one, where one was asked for.
    pub(crate) vm: String,
    /// Folder that holds everything, absolute.
    pub(crate) dir: PathBuf,
    /// Restored disks.
    pub(crate) disks: Vec<RestoredDiskReport>,
    /// Restored memory, where it was.
    pub(crate) memory: Option<RestoredMemory>,
    /// Further files.
    pub(crate) files: Vec<PathBuf>,
    /// The guest, where it was started.
    pub(crate) running: Option<RunningGuest>,
    /// What may differ from what the user expects.
    pub(crate) warnings: Vec<String>,
    /// Time it took.
    pub(crate) seconds: f64,
}

/// A restored disk.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RestoredDiskReport {
    /// Its id.
    pub(crate) id: String,
    /// Where it is, absolute.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: ImageFormat,
    /// Virtual size.
    pub(crate) size_bytes: u64,
    /// Bytes written; the rest is zero.
    pub(crate) written_bytes: u64,
}

/// Restored memory.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RestoredMemory {
    /// The stream's file, for `-incoming file:`; `None` where QEMU took it at once.
    pub(crate) path: Option<PathBuf>,
    /// Length of the stream.
    pub(crate) stream_bytes: u64,
}

/// A guest that was started.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunningGuest {
    /// Process id of QEMU.
    pub(crate) pid: u32,
    /// Its QMP socket.
    pub(crate) qmp_socket: PathBuf,
    /// What its serial console prints.
    pub(crate) console_log: PathBuf,
    /// What QEMU prints.
    pub(crate) qemu_log: PathBuf,
    /// Run state, QEMU's word.
    pub(crate) run_state: String,
    /// What was changed against the old machine, and why.
    pub(crate) changes: Vec<String>,
}
