//! A disk that is there at once: an empty qcow2 overlay over an NBD export of the snapshot.
//!
//! The name of what lies under it is in the image itself, as JSON, so that whoever opens the image
//! finds the export again, also after the host has been started anew.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::restore::error::RestoreError;

/// How long QEMU waits for a server that went away before the guest gets an error, seconds: a week.
const RECONNECT_S: u32 = 7 * 24 * 3600;

/// Makes an overlay of `size_bytes` in the file that is there, over an export that need not be
/// served yet.
pub(crate) fn create(
    path: &Path,
    size_bytes: u64,
    socket: &Path,
    export: &str,
) -> Result<(), RestoreError> {
    let under = json!({
        "driver": "raw",
        "file": {
            "driver": "nbd",
            "export": export,
            "reconnect-delay": RECONNECT_S,
            "server": { "type": "unix", "path": socket.to_string_lossy() },
        },
    });
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b"]);
    command.arg(format!("json:{under}"));
    command.args(["-o", "cluster_size=65536", "--"]);
    run(command.arg(path).arg(size_bytes.to_string()), path).map(drop)
}

/// Copies into an overlay what is still only under it. No QEMU may use the overlay.
pub(crate) fn complete(path: &Path) -> Result<(), RestoreError> {
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-q", "-f", "qcow2", "-b", "", "--"]);
    run(command.arg(path), path).map(drop)
}

/// Whether nothing is under an image any more, by its own word.
pub(crate) fn is_local(path: &Path) -> Result<bool, RestoreError> {
    let mut command = Command::new("qemu-img");
    // QEMU may be using it.
    command.args(["info", "-U", "-f", "qcow2", "--output=json", "--"]);
    let said = run(command.arg(path), path)?;
    let info: serde_json::Value = serde_json::from_slice(&said)
        .map_err(|error| RestoreError::file("look at", path)(std::io::Error::from(error)))?;
    Ok(info.get("backing-filename").is_none())
}

fn run(command: &mut Command, path: &Path) -> Result<Vec<u8>, RestoreError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| RestoreError::NoProgram {
        program: "qemu-img",
        package: "qemu-utils",
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(RestoreError::Program {
        program: "qemu-img",
        path: path.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
