//! Reads all of a snapshot and keeps nothing: whether it could be restored.
//!
//! Every chunk that is read is compared with the hash that names it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vmtwin_repository::{ImageSink, Repository, Snapshot};

use super::error::RestoreError;
use super::inventory::Inventory;
use super::memory;
use super::progress::{Phase, RestoreProgress, Watch};

/// Reads everything; gives the bytes that a restore would write.
///
/// # Errors
/// The first thing that can't be read or is not what it should be.
pub(crate) fn read_all(
    repository: &Repository,
    snapshot: &Snapshot,
    progress: &dyn RestoreProgress,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<u64, RestoreError> {
    let watch = Watch {
        progress,
        cancelled,
    };
    let reader = repository.reader(snapshot)?;
    let inventory = Inventory::read(&reader, None)?;
    let counted = Counted::default();
    for disk in &inventory.disks {
        progress.begin(Phase::Disk(&disk.id), disk.image.size_bytes());
        disk.image.copy_to(&counted, &watch)?;
    }
    for file in &inventory.files {
        reader.copy_file(&file.path_in_snapshot(), &mut io::sink())?;
    }
    let mut bytes = counted.0.into_inner();
    if inventory.content.memory.is_some() {
        let state = inventory.open_state(&reader)?;
        progress.begin(Phase::Memory, state.total_bytes());
        bytes += memory::write(&reader, &state, &mut io::sink(), watch)?;
    }
    progress.end();
    Ok(bytes)
}

/// Counts what would be written.
#[derive(Default)]
struct Counted(AtomicU64);

impl ImageSink for Counted {
    fn write_at(&self, _offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
