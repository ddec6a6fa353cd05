//! A twin's disk: an overlay of its own over the point, so that nothing is copied and nothing of
//! the guest is written to.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::TwinError;
use crate::machine::Disk;
use crate::process;

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
    /// Its format: `qcow2`, or `raw` where it is a copy.
    pub format: &'static str,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    backing: Backing,
}

impl Overlay {
    /// Plans an image in `dir` for `disk`.
    #[must_use]
    pub fn new(disk: &Disk, backing: Backing, dir: &Path) -> Overlay {
        Overlay {
            disk_id: disk.id.clone(),
            path: dir.join(format!("{}.qcow2", disk.id)),
            format: "qcow2",
            size_bytes: disk.size_bytes,
            backing,
        }
    }

    /// Plans a whole copy, for what is small and must be raw: firmware's variables.
    #[must_use]
    pub fn copy(disk: &Disk, backing: Backing, dir: &Path) -> Overlay {
        Overlay {
            path: dir.join(format!("{}.raw", disk.id)),
            format: "raw",
            ..Overlay::new(disk, backing, dir)
        }
    }

    /// Makes the image. Its backing is named, not opened, unless it is copied.
    ///
    /// # Errors
    /// [`TwinError::Overlay`].
    pub fn create(&self) -> Result<(), TwinError> {
        let mut command = Command::new("qemu-img");
        if let ("raw", Backing::Nbd { socket, export }) = (self.format, &self.backing) {
            command.args(["convert", "-f", "raw", "-O", "raw"]);
            command.arg(backing_json(socket, export)).arg(&self.path);
            return self.run(&mut command);
        }
        command.args(["create", "-q", "-u", "-f", "qcow2"]);
        if let Backing::Nbd { socket, export } = &self.backing {
            command.args(["-F", "raw", "-b", &backing_json(socket, export)]);
        }
        command.arg(&self.path).arg(self.size_bytes.to_string());
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> Result<(), TwinError> {
        process::run(command, "qemu-utils").map_err(|reason| TwinError::Overlay {
            path: self.path.clone(),
            reason,
        })
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
