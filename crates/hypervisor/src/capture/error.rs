//! Why a capture failed.

use std::path::PathBuf;

use super::JournalError;
use crate::qmp::QmpError;
use crate::spool::SpoolError;
use crate::undo::UndoError;

/// Why a capture failed. The guest runs on in every case.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Talking to QEMU failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU refuses to snapshot memory.
    #[error("the guest's memory cannot be captured; use --consistency crash for its disks alone")]
    MemoryRefused {
        /// QEMU's reason.
        source: QmpError,
    },
    /// The snapshot of memory ended badly.
    #[error("the memory capture failed: {reason}")]
    MemoryFailed {
        /// QEMU's reason.
        reason: String,
    },
    /// Somebody migrates the guest.
    #[error("a migration of the guest is {status}; try again when it has ended")]
    MigrationBusy {
        /// QEMU's word.
        status: String,
    },
    /// QEMU's NBD server could not be started.
    #[error(
        "QEMU's NBD server cannot be started; if another tool uses it, end that first \
         (nbd-server-stop)"
    )]
    NbdServer {
        /// QEMU's reason.
        source: QmpError,
    },
    /// The scratch image could not be made.
    #[error("cannot make the scratch image {path}: {reason}")]
    Scratch {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The point can no longer be read.
    #[error("the point is lost: {reason}")]
    PointLost {
        /// Why.
        reason: String,
    },
    /// The spool gave up.
    #[error("the memory spool gave up")]
    Spool(#[from] SpoolError),
    /// The journal could not be written, or a step was not allowed to begin.
    #[error("cannot go on at step '{step}'")]
    Journal {
        /// The step.
        step: String,
        /// Why not.
        source: JournalError,
    },
    /// The guest is in a state that cannot be captured.
    #[error("the guest is in state '{state}', which cannot be captured; wait until it has passed")]
    State {
        /// QEMU's word.
        state: String,
    },
    /// The guest ran on when it should have been paused.
    #[error("memory and disks are not of one instant: {reason}; try again")]
    NotOneInstant {
        /// What was seen.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Undoing failed.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// The system refused something.
    #[error("the system refused something")]
    Io(#[from] std::io::Error),
}
