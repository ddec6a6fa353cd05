//! The spill thread: moves chunks that memory has no room for into the file.

use super::SpoolError;
use super::state::Shared;

/// Moves chunks until the spool has ended. Nobody waits for this thread: a disk that hangs must
/// not hold anything up.
pub(super) fn run(shared: &Shared) {
    while let Some((index, chunk, offset)) = shared.next_to_spill() {
        let options = &shared.options;
        let len = chunk.len() as u64;
        let file = match &shared.file {
            Some(file) if offset + len <= options.disk_limit_bytes => file,
            _ => {
                return shared.fail(SpoolError::DiskLimit {
                    memory_limit_bytes: options.memory_limit_bytes,
                    disk_limit_bytes: options.disk_limit_bytes,
                });
            }
        };
        match file.write_at(offset, &chunk) {
            Ok(()) => shared.spilled(index, chunk, offset),
            Err(error) => return shared.fail(SpoolError::Write(error)),
        }
    }
}
