//! What a caller asks of a restore.

use std::path::PathBuf;

use serde::Serialize;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::launch::Network;

/// Format of a restored disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImageFormat {
    /// QEMU's format.
    Qcow2,
    /// Block after block; holes where the disk is zero.
    Raw,
}

impl ImageFormat {
    /// QEMU's name of it, and the end of the file's name.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Raw => "raw",
        }
    }

    /// What a disk becomes that had this format: qcow2 stays, everything else becomes raw.
    #[must_use]
    pub(crate) fn as_it_was(format: &str) -> ImageFormat {
        match format {
            "qcow2" => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        }
    }
}

/// How to restore a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct RestoreRequest {
    /// Folder that everything is written to; made if it is not there.
    pub(crate) dir: PathBuf,
    /// Format of the disks; `None` as each was.
    pub(crate) format: Option<ImageFormat>,
    /// Replace files that are there.
    pub(crate) force: bool,
    /// Start the guest.
    pub(crate) run: bool,
    /// Start it before its disks are here: see [`super::instant`].
    pub(crate) instant: bool,
    /// With `instant` and without `run`, since somebody else starts it: where its monitor will be.
    pub(crate) monitor: Option<PathBuf>,
    /// Leave the started guest paused, whatever it did at the point.
    pub(crate) hold: bool,
    /// Where its network leads.
    pub(crate) network: Network,
    /// New name of the guest; `None` keeps the old one.
    pub(crate) name: Option<String>,
    /// An accelerator in place of the old one, such as `tcg`.
    pub(crate) accel: Option<String>,
    /// Restore only these disks.
    pub(crate) disks: Option<Vec<String>>,
    /// Where the guest is not started: write its memory to `memory.stream`.
    pub(crate) memory: bool,
    /// How to start the process that takes the restore back if this one dies; `None` for none.
    pub(crate) guard: Option<GuardCommand>,
}
