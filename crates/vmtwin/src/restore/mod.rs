//! Restores a guest from a snapshot: its disks, its memory, or the guest itself, running.
//!
//! Needs the repository and its password, nothing else. What a snapshot says is not trusted: names
//! are checked before they become paths, sizes before they become files.
//!
//! ```text
//! Inventory (read, check) ─► targets (all checked) ─► plan of the launch
//!        ─► write `.NAME.vmtwin-partial` ─► publish (rename) ─► run ─► keep
//!           └──────────── on any error or cancel: taken back ────────┘
//! ```
//! Up to `keep` everything is taken back: files of ours are removed, files that `force` replaced
//! return, and a QEMU of ours ends. Where this process dies, its guard does that.

mod check;
mod error;
mod files;
mod folder;
mod guard;
mod in_use;
pub(crate) mod instant;
mod inventory;
mod launch;
mod launch_files;
mod memory;
mod name;
mod nbd_server;
mod progress;
mod qcow2;
mod raw;
mod recipe;
mod report;
mod request;
mod space;
mod sparse_sink;
mod state;
mod take_back;
mod target;
#[cfg(test)]
mod tests;
mod tpm;

pub(crate) use check::read_all;
pub(crate) use guard::run_guard;
pub(crate) use inventory::Inventory;
pub(crate) use memory::write_state;
pub(crate) use nbd_server::NbdServer;
pub(crate) use progress::{Phase, RestoreProgress};
pub(crate) use recipe::restore;
pub(crate) use report::RestoreReport;
pub(crate) use request::{ImageFormat, RestoreRequest};
