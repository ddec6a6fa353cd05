//! What a caller asks of a launch.

use std::path::PathBuf;

/// How to start a machine again.
#[derive(Debug, Clone)]
pub struct LaunchRequest {
    /// Images that take the places of the machine's disks.
    pub disks: Vec<RestoredDisk>,
    /// Where the new QMP socket is made.
    pub qmp_socket: PathBuf,
    /// Whether a live state comes in.
    pub incoming: Incoming,
    /// Where the network leads.
    pub network: Network,
    /// New name of the guest; `None` keeps the old one.
    pub name: Option<String>,
    /// File that the first serial console writes to. Further consoles append `.2`, `.3`…
    pub console_log: PathBuf,
    /// Socket on which the first serial console can be written to.
    pub console_socket: Option<PathBuf>,
    /// Socket that leads to the guest agent, where the machine has a channel for one.
    pub agent_socket: Option<PathBuf>,
    /// Folder to start in.
    pub dir: PathBuf,
    /// An accelerator in place of the old one, such as `tcg`.
    pub accel_override: Option<String>,
    /// Tell the guest that it is a copy, where it has a `vmgenid` device.
    pub new_vmgenid: bool,
    /// Socket of a TPM emulator that was started on restored TPM state.
    pub tpm_socket: Option<PathBuf>,
}

/// An image in place of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredDisk {
    /// `Disk::id` in the manifest.
    pub id: String,
    /// The image.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: String,
}

/// The state that the machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// A live state; [`start`](super::start) passes it on as QEMU's standard input.
    State,
    /// None: the machine boots.
    None,
}

/// Where the network of the new machine leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nowhere: no back end that reaches anything, in the structure and not by a switch.
    None,
    /// Nowhere as well, but every tap has a name by which it can be joined to a bridge later:
    /// see [`LaunchPlan::taps`](super::LaunchPlan::taps).
    Standby,
    /// Out through this host (QEMU's user mode), reachable from nowhere.
    User,
    /// Where it led before. The old guest must be gone.
    Original,
}
