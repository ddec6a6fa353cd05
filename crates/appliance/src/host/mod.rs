//! The host's side: makes the machine, asks it, and writes what it hands out.

mod cpio;
mod error;
mod extract;
mod initramfs;
mod kernel;
mod machine;
mod program;
mod receive;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use error::ApplianceError;
pub use extract::{Extracted, Extraction, OnProgress};
pub use kernel::default_kernel;
pub use machine::{Appliance, MAX_DISKS};
pub use receive::{FileToWriter, Receiver};

/// A disk that the machine reads.
#[derive(Clone, Debug)]
pub struct DiskSource {
    /// Socket of an NBD server.
    pub socket: PathBuf,
    /// Name of the export.
    pub export: String,
}

/// How the machine is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program that becomes process 1, and calls [`crate::guest::run`] when it gets `init_args`.
    pub program: PathBuf,
    /// Its arguments: words without blanks.
    pub init_args: Vec<String>,
    /// A kernel; by default the host's own, or the newest in `/boot` that has its modules.
    pub kernel: Option<PathBuf>,
    /// Folder of the kernel's modules; by default `/lib/modules/VERSION`.
    pub modules: Option<PathBuf>,
    /// A folder for the machine's files, for its user alone; it must be there. A folder of its own
    /// is made in it, and removed.
    pub scratch: PathBuf,
    /// `kvm` or `tcg`; by default what works.
    pub accel: Option<String>,
    /// Ends all waiting.
    pub cancel: Arc<AtomicBool>,
}
