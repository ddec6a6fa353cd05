//! Progress of a restore: phases, and bytes in them.

use vmtwin_repository::{Progress, ProgressDelta};

/// A part of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase<'a> {
    /// A disk is written.
    Disk(&'a str),
    /// Files beside the disks are written.
    Files,
    /// Memory is written, or given to QEMU.
    Memory,
    /// QEMU starts.
    Start,
}

/// Hears of a restore. Called from several threads.
pub(crate) trait RestoreProgress: Sync {
    /// A phase begins; the one before has ended. `total_bytes` is 0 where it is not known.
    fn begin(&self, phase: Phase<'_>, total_bytes: u64);

    /// This many more bytes of the phase are done, holes included.
    fn advance(&self, bytes: u64);

    /// The last phase has ended.
    fn end(&self) {}
}

/// Both ears of a running restore: who hears of progress, and who may cancel.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) progress: &'a dyn RestoreProgress,
    pub(super) cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Progress for Watch<'_> {
    fn advance(&self, delta: ProgressDelta) {
        self.progress.advance(delta.bytes_processed);
    }

    fn cancelled(&self) -> bool {
        (self.cancelled)()
    }
}
