//! A twin's disk: an overlay of its own over the point, so that nothing is copied and nothing of
//! the guest is written to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::TwinError;
use crate::machine::Disk;

/// What lies under an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: the disk is blank until another takes its place.
    Blank,
    /// An NBD export on a unix socket.
    Nbd {
        /// The socket.
        socket: PathBuf,
        /// Name of the export.
        export: String,
    },
}

/// An overlay to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The guest's disk.
    pub disk_id: String,
    /// The image: qcow2.
    pub path: PathBuf,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    backing: Backing,
}

impl Overlay {
    pub(super) fn new(disk: &Disk, backing: Backing, dir: &Path) -> Overlay {
        Overlay {
            disk_id: disk.id.clone(),
            path: dir.join(format!("{}.qcow2", disk.id)),
            size_bytes: disk.size_bytes,
            backing,
        }
    }

    /// Makes the image. Its backing is named, not opened.
    pub(super) fn create(&self) -> Result<(), TwinError> {
        let failed = |reason: String| TwinError::Overlay {
            path: self.path.clone(),
            reason,
        };
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2"]);
        if let Backing::Nbd { socket, export } = &self.backing {
            command.args(["-F", "raw", "-b", &backing_json(socket, export)]);
        }
        let output = command
            .arg(&self.path)
            .arg(self.size_bytes.to_string())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                failed(format!("cannot run qemu-img (package qemu-utils): {error}"))
            })?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )),
        }
    }
}

/// As QEMU's `json:` form: a socket's path in a URI would have to be escaped.
fn backing_json(socket: &Path, export: &str) -> String {
    let file = serde_json::json!({
        "driver": "raw",
        "file": {"driver": "nbd", "export": export,
                 "server": {"type": "unix", "path": socket.to_string_lossy()}},
    });
    format!("json:{file}")
}
