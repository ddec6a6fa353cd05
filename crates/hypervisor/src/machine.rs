//! What a guest is: the machine as QEMU itself reports it, the manifest kept in every snapshot.
//!
//! One value serves three readers: the VM management table (state, disks and where they lie), the
//! capture (which disks take part, what would block it), and a restore (how to start it again).
//! It is stored as `/machine.json` in the snapshot, so fields are only ever added.

use serde::{Deserialize, Serialize};

/// Version of the manifest's layout.
pub const MACHINE_FORMAT: u32 = 1;

/// A guest as inspection found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Layout version, [`MACHINE_FORMAT`].
    pub format: u32,
    /// QEMU's `-name`, if it has one.
    pub name: Option<String>,
    /// QEMU's `-uuid`; all zeros where none was given.
    pub uuid: String,
    /// QEMU's version, for example `10.0.2`.
    pub qemu_version: String,
    /// Versioned machine type such as `pc-i440fx-10.0`, never an alias.
    pub machine_type: String,
    /// Run state at inspection: QEMU's own word (`running`, `paused`, …).
    pub run_state: String,
    /// Guest memory, base plus plugged, in bytes.
    pub memory_bytes: u64,
    /// Process id of QEMU on this host.
    pub pid: u32,
    /// User that QEMU runs as.
    pub uid: u32,
    /// Working folder of QEMU; relative paths in `args` start here.
    pub cwd: String,
    /// QEMU's command line, program first.
    pub args: Vec<String>,
    /// Virtual disks in QEMU's order, those that a backup leaves out among them.
    pub disks: Vec<Disk>,
    /// Files that belong to the machine beside its disks and are not block nodes (TPM state…).
    pub files: Vec<MachineFile>,
    /// What prevents a backup of memory; empty where it can be had.
    pub memory_blockers: Vec<String>,
    /// What prevents any backup.
    pub blockers: Vec<String>,
}

/// One virtual disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The virtual disk's id in tables and in the snapshot (`disks/<id>`): the device's id, or the
    /// back end's name. Only letters, digits, `.`, `_` and `-`.
    pub id: String,
    /// Path of the device in QEMU's object tree, as `query-block` gives it.
    pub qdev: String,
    /// Name of the root block node.
    pub node_name: String,
    /// Physical address: file path, block device, NBD URI, iSCSI portal and IQN…
    pub address: String,
    /// What kind of address it is.
    pub kind: AddressKind,
    /// Image format: `qcow2`, `raw`…
    pub format: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// The guest can't write to it.
    pub read_only: bool,
    /// A pflash drive holding firmware code or variables.
    pub firmware: bool,
    /// Whether a backup takes it.
    pub included: bool,
    /// Why it is left out, where it is.
    pub excluded_because: Option<String>,
    /// Addresses of the images under it, nearest first.
    pub backing: Vec<String>,
}

/// The kind of a disk's physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressKind {
    /// A regular file.
    File,
    /// A block device of the host.
    BlockDevice,
    /// An NBD server.
    Nbd,
    /// An iSCSI target.
    Iscsi,
    /// Anything else: RBD, SSH, HTTP…
    Other,
}

impl AddressKind {
    /// It is a file or a device of this host, there also when no QEMU has it open.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, AddressKind::File | AddressKind::BlockDevice)
    }
}

/// A file beside the disks that belongs to the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFile {
    /// What it is: `tpm-state`.
    pub role: String,
    /// Path on the host it came from.
    pub path: String,
    /// Path in the snapshot, under `/files/`.
    pub stored_as: String,
}
