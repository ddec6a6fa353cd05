//! Whether a running QEMU has an image open, by QEMU's own locks.

use std::path::Path;
use std::process::{Command, Stdio};

use super::error::RestoreError;

/// Refuses an image that a running guest writes to.
///
/// `qemu-img info` takes the lock that every reader takes, and is refused while there is a writer.
/// Any other failure means that the file is no image that QEMU can have open.
pub(super) fn refuse(path: &Path) -> Result<(), RestoreError> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "--"])
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| RestoreError::NoProgram {
            program: "qemu-img",
            source,
        })?;
    let message = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && message.contains("lock") {
        return Err(RestoreError::InUse {
            path: path.to_owned(),
        });
    }
    Ok(())
}
