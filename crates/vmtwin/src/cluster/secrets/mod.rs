//! Secrets in a backup of the cluster: values of libvirt's secrets, passwords in definitions of guests,
//! and files of the node's own. They are in it only if they were asked for.
//!
//! ```text
//!   a node's libvirt ─► collect ─► seal, on that node ─► coordinator ─► secrets/NAME.age in the zip
//!   the zip ─► open, where the restore was asked for ─► the node's agent, over TLS ─► libvirt
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `seal.rs` | sealing and opening, in the format of age |
//! | `collect.rs` | what this node has |
//! | `files.rs` | files of its own: certificate, settings, passwords of repositories |
//! | `serve.rs` | what its agent gives to nodes that may restore it |
//!
//! Nothing that is open is written to disk, into the shared database or into a log; only the node that
//! has a secret seals it.

mod collect;
mod files;
mod seal;
mod serve;

pub(super) use collect::collect;
pub(super) use files::keep as keep_file;
pub(super) use seal::{Opened, Opening, Sealing};
pub(crate) use seal::{Recipients, new_identity};
pub(super) use serve::{Given, MAX_GIVEN_BYTES, PATH, Wanted, routes};
