//! Point-in-time view of a disk: a scratch image, a copy-before-write filter, an access node.
//!
//! ```text
//!   before            in the pause             after
//!   device ─► disk    device ─► filter ─► disk      access ─► filter, exported read-only by NBD
//!             │                   └────► scratch (old data of blocks the guest writes)
//! ```
//! `on-cbw-error=break-snapshot`: when scratch is full or slow the backup fails, never the guest.
//! Node names are at most 31 characters, QEMU's limit.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use serde_json::{Value, json};

use super::CaptureError;
use crate::machine::Disk;
use crate::process;
use crate::qmp::{Command, Qmp};

/// Longest a guest's write may wait for its old data to reach scratch, seconds.
const CBW_TIMEOUT_S: u32 = 2;

/// What QEMU notes of files that it holds for us.
const FD_NOTE: &str = "vmtwin";

/// Name under which QEMU holds the socket that it is to serve.
const NBD_FD_NAME: &str = "vmtwin-nbd";

/// Names of the nodes that make one disk's view.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) disk: Disk,
    pub(crate) filter: String,
    pub(crate) scratch: String,
    pub(crate) access: String,
    pub(crate) scratch_path: PathBuf,
    /// Set of file descriptors that hands scratch over to a QEMU that may not open it.
    pub(crate) fd_set: u64,
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
            fd_set: fd_set(tag, n),
            dirty: format!("{stem}-dirty"),
        }
    }

    /// Makes the scratch image; an `owner` gets it.
    pub(crate) fn create_scratch(&self, owner: Option<(u32, u32)>) -> Result<(), CaptureError> {
        let mut command = Process::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        command
            .arg(&self.scratch_path)
            .arg(self.disk.size_bytes.to_string());
        process::run(&mut command, "qemu-utils").map_err(|reason| CaptureError::Scratch {
            path: self.scratch_path.clone(),
            reason,
        })?;
        owner.map_or(Ok(()), |owner| give_to(&self.scratch_path, owner))
    }

    /// Opens scratch for QEMU.
    pub(crate) fn hand_over_scratch(&self, qmp: &mut Qmp) -> Result<(), CaptureError> {
        let mut open = std::fs::OpenOptions::new();
        let file = open
            .read(true)
            .write(true)
            .open(&self.scratch_path)
            .map_err(CaptureError::Io)?;
        // libvirt 11.3 looks for files of its own by their notes when it saves a guest, and its
        // daemon crashes at one without.
        let set = json!({"fdset-id": self.fd_set, "opaque": FD_NOTE});
        qmp.execute_with_fd("add-fd", set, file.as_fd())?;
        Ok(())
    }

    /// Adds scratch and filter to QEMU's graph; the device does not use them yet. `storage` is the
    /// socket of the daemon that holds scratch, where one does.
    pub(crate) fn add_nodes(
        &self,
        qmp: &mut Qmp,
        storage: Option<&Path>,
    ) -> Result<(), CaptureError> {
        let file = match qmp.is_relayed() {
            true => PathBuf::from(format!("/dev/fdset/{}", self.fd_set)),
            false => self.scratch_path.clone(),
        };
        let scratch = match storage {
            None => json!({"driver": "qcow2", "node-name": self.scratch, "discard": "unmap",
                           "file": {"driver": "file", "filename": file}}),
            Some(socket) => json!({"driver": "nbd", "node-name": self.scratch,
                                   "export": self.scratch,
                                   "server": self.hand_over_storage(qmp, socket)?}),
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

    /// Where the storage daemon is; to a QEMU that may not go there, a connection to it.
    fn hand_over_storage(&self, qmp: &mut Qmp, socket: &Path) -> Result<Value, CaptureError> {
        if !qmp.is_relayed() {
            return Ok(json!({"type": "unix", "path": socket}));
        }
        let stream = UnixStream::connect(socket).map_err(CaptureError::Io)?;
        qmp.execute_with_fd("getfd", json!({"fdname": self.scratch}), stream.as_fd())?;
        Ok(json!({"type": "fd", "str": self.scratch}))
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

/// The id of the set for disk number `n` of capture `tag`: far from those that others count up. As
/// part of a path QEMU reads it as a 32-bit number.
fn fd_set(tag: &str, n: usize) -> u64 {
    let tag = u32::from_str_radix(tag, 16).unwrap_or(0);
    (1 << 30) + (u64::from(tag & 0x3f_ffff) << 8) + (n as u64 & 0xff)
}

/// Starts QEMU's NBD server on a unix socket; one that may not make it gets it made.
pub(crate) fn start_nbd_server(qmp: &mut Qmp, socket: &Path) -> Result<(), CaptureError> {
    if qmp.is_relayed() {
        let listener = UnixListener::bind(socket).map_err(CaptureError::Io)?;
        let name = json!({"fdname": NBD_FD_NAME});
        qmp.execute_with_fd("getfd", name, listener.as_fd())?;
        let address = json!({"addr": {"type": "fd", "data": {"str": NBD_FD_NAME}}});
        return match qmp.execute("nbd-server-start", address) {
            Ok(_) => Ok(()),
            Err(source) => {
                // Not taken, so it is still QEMU's to give back.
                let _ = qmp.execute("closefd", json!({"fdname": NBD_FD_NAME}));
                Err(CaptureError::NbdServer { source })
            }
        };
    }
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
