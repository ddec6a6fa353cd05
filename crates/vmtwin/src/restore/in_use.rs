//! Whether a running QEMU has an image open, by QEMU's own locks.

use std::fs::OpenOptions;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use super::error::RestoreError;

/// Refuses an image that a running guest, or another program of QEMU's, has open.
///
/// QEMU holds a shared lock on some bytes of every image that it has open, whatever its format, so
/// that an exclusive lock of all bytes is refused. Ours is gone when the file is closed here.
pub(super) fn refuse(path: &Path) -> Result<(), RestoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(RestoreError::file("open", path))?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err(RestoreError::InUse {
            path: path.to_owned(),
        }),
        // Also on a file system without locks, where QEMU has none either.
        _ => Ok(()),
    }
}
