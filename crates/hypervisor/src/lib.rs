//! A running guest by QMP: inspect it, capture it at one instant, undo what was done to it, start
//! it again.
//!
//! Knows nothing of repositories, catalogs or NBD. Everything between pause and resume is here.

pub mod agent;
pub mod bitmap;
pub mod capture;
pub mod collapse;
mod ffi;
pub mod guard;
pub mod inspect;
pub mod launch;
pub mod machine;
pub mod process;
pub mod qmp;
pub mod spool;
pub mod twin;
pub mod undo;
pub mod undo_guard;

/// What the names of all our block nodes and exports begin with.
pub const NODE_PREFIX: &str = "vmtwin-";
