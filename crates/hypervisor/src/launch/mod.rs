//! Starts a machine again from its manifest.
//!
//! A live state fits only the machine it came from: the same devices under the same ids, the same
//! machine type, memory and CPUs. What stands behind the devices may change, and must: disks become
//! the restored ones, networks lead nowhere, consoles go to files. [`plan`] turns the command line
//! of the manifest into the one to start, and says what it changed and why; it starts nothing.
//! [`start`] runs a plan.
//!
//! ```text
//! Machine.args ─► CommandLine ─► refuse ─► disks ─► network ─► channels ─► memory ─► board ─► LaunchPlan
//! ```
//!
//! What can't be started safely beside the old guest, or at all, is refused by name.

mod block_node;
mod blockers;
mod board;
mod channels;
mod command_line;
mod disks;
mod error;
mod memory;
mod network;
mod options;
mod plan;
mod process;
mod request;
mod serial;
#[cfg(test)]
mod tests;
mod tpm;

pub use channels::{agent_socket, has_tpm_emulator};
pub use error::{LaunchError, StartError};
pub use network::Tap;
pub use plan::{LaunchPlan, plan};
pub(crate) use process::tail;
pub use process::{Launched, start};
pub use request::{Incoming, LaunchRequest, Network, RestoredDisk};
pub use tpm::{RunningTpm, TpmEmulator, TpmError};
