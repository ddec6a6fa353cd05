//! Point-in-time view of a disk: a scratch image, a copy-before-write filter, an access node.
//!
//! ```text
//!   before            in the pause             after
//!   device ─► disk    device ─► filter ─► disk      access ─► filter, exported read-only by NBD
//!             │                   └────► scratch (old data of blocks the guest writes)
//! ```
//! `on-cbw-error=break-snapshot`: when scratch is full or slow the backup fails, never the guest.
//! Node names are at most 31 characters, QEMU's limit.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use serde_json::{Value, json};

use super::CaptureError;
use crate::machine::Disk;
use crate::process;
use crate::qmp::{Command, Qmp};

/// Longest a guest's write may wait for its old data to reach scratch, seconds.
const CBW_TIMEOUT_S: u32 = 2;

/// Names of the nodes that make one disk's view.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) disk: Disk,
    pub(crate) filter: String,
    pub(crate) scratch: String,
    pub(crate) access: String,
    pub(crate) scratch_path: PathBuf,
    /// Copy of a bitmap that tells what was written since an earlier point.
    pub(crate) dirty: String,
}

impl View {
    /// Names for disk number `n` of capture `tag` (8 characters), scratch in `dir`.
    pub(crate) fn new(disk: &Disk, tag: &str, n: usize, dir: &Path) -> View {
        let stem = format!("{}{tag}-{n}", crate::NODE_PREFIX);
        View {
            disk: disk.clone(),
            filter: format!("{stem}-filter"),
            scratch: format!("{stem}-scratch"),
            access: format!("{stem}-access"),
            scratch_path: dir.join(format!("scratch-{n}.qcow2")),
            dirty: format!("{stem}-dirty"),
        }
    }

    /// Makes the scratch image, owned by QEMU's user.
    pub(crate) fn create_scratch(&self, owner: (u32, u32)) -> Result<(), CaptureError> {
        let mut command = Process::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        command
            .arg(&self.scratch_path)
            .arg(self.disk.size_bytes.to_string());
        process::run(&mut command, "qemu-utils").map_err(|reason| CaptureError::Scratch {
            path: self.scratch_path.clone(),
            reason,
        })?;
        give_to(&self.scratch_path, owner)
    }

    /// Adds scratch and filter to QEMU's graph; the device does not use them yet. `storage` is the
    /// socket of the daemon that holds scratch, where one does.
    pub(crate) fn add_nodes(
        &self,
        qmp: &mut Qmp,
        storage: Option<&Path>,
    ) -> Result<(), CaptureError> {
        let scratch = match storage {
            None => json!({"driver": "qcow2", "node-name": self.scratch, "discard": "unmap",
                           "file": {"driver": "file", "filename": self.scratch_path}}),
            Some(socket) => json!({"driver": "nbd", "node-name": self.scratch,
                                   "export": self.scratch,
                                   "server": {"type": "unix", "path": socket}}),
        };
        qmp.execute("blockdev-add", scratch)?;
        qmp.execute(
            "blockdev-add",
            json!({"driver": "copy-before-write", "node-name": self.filter,
                   "file": self.disk.node_name, "target": self.scratch,
                   "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT_S}),
        )?;
        Ok(())
    }

    /// The command that puts the filter between device and disk.
    pub(crate) fn switch(&self) -> Command {
        Command::new(
            "qom-set",
            json!({"path": self.disk.qdev, "property": "drive", "value": self.filter}),
        )
    }

    /// Makes the view readable over NBD under the name of the disk's id; with the frozen bitmap,
    /// where there is one.
    pub(crate) fn export(&self, qmp: &mut Qmp, dirty: bool) -> Result<(), CaptureError> {
        qmp.execute(
            "blockdev-add",
            json!({"driver": "snapshot-access", "node-name": self.access, "file": self.filter}),
        )?;
        let mut export = json!({"type": "nbd", "id": self.export_id(), "node-name": self.access,
                                "name": self.disk.id, "writable": false});
        if dirty {
            export["bitmaps"] = json!([{"node": self.disk.node_name, "name": self.dirty}]);
        }
        qmp.execute("block-export-add", export)?;
        Ok(())
    }

    pub(crate) fn export_id(&self) -> String {
        format!("{}-export", self.filter.trim_end_matches("-filter"))
    }
}

/// Starts QEMU's NBD server on a unix socket.
pub(crate) fn start_nbd_server(qmp: &mut Qmp, socket: &Path) -> Result<(), CaptureError> {
    let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
    qmp.execute("nbd-server-start", address)
        .map(|_: Value| ())
        .map_err(|source| CaptureError::NbdServer { source })
}

/// Hands a file of ours over to QEMU's user, where that is another one.
pub(crate) fn give_to(path: &Path, (uid, gid): (u32, u32)) -> Result<(), CaptureError> {
    if rustix::process::geteuid().as_raw() == uid {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(|source| CaptureError::Scratch {
        path: path.to_owned(),
        reason: format!("cannot give it to QEMU's user {uid}: {source}"),
    })
}
