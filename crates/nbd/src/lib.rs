//! NBD client and read-only server, with structured replies and block status, many requests in
//! flight.
//!
//! Reads and writes the disks that QEMU and qemu-nbd export on unix sockets: the
//! point-in-time view of a running guest, and images under restore. One [`Client`] is one
//! connection; it is shared by threads (`&Client` is all that a call needs), each thread has
//! one request in flight, and replies may come in any order. It blocks and needs no runtime.
//!
//! The server is not trusted: whatever it sends ends in data, in an [`Error`], or in
//! [`Error::Timeout`], with bounded memory. After an error that leaves the connection in doubt,
//! every further call fails with [`Error::Closed`].
//!
//! [`Server`] serves whatever implements [`ServedImage`], for reading. Its clients are not trusted
//! either; see the head of the module `server`.
//!
//! The protocol is described at
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod client;
mod connection;
mod coverage;
mod deadline;
mod error;
mod extents;
#[doc(hidden)]
pub mod fuzzing;
mod negotiate;
mod options;
mod reply;
mod server;
mod wire;

pub use client::Client;
pub use error::Error;
pub use extents::{Extents, StatusExtent};
pub use options::Options;
pub use server::{Listener, ServedExport, ServedExtent, ServedImage, Server, ServerError};

/// Names and flags of the metadata contexts that QEMU offers.
pub mod context {
    /// What is allocated, and what reads as zeros: [`HOLE`], [`ZERO`].
    pub const BASE_ALLOCATION: &str = "base:allocation";
    /// `base:allocation`: the range is not allocated.
    pub const HOLE: u32 = 1;
    /// `base:allocation`: the range reads as zeros.
    pub const ZERO: u32 = 2;
    /// At which depth of the backing chain the data is; 0 if it is nowhere.
    pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
    /// Followed by the name of a dirty bitmap: [`DIRTY`].
    pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
    /// `qemu:dirty-bitmap:…`: the range was written since the bitmap was started.
    pub const DIRTY: u32 = 1;
}
