//! Backup and restore of a cluster's configuration: recipes over the catalog, which the nodes share,
//! and the archive.
//!
//! ```text
//!   this node ─► XML ─────────────┐
//!   other nodes' agents ─► XML ───┤
//!   database ─► last known XML ───┼─► parts ─► manifest ─► one zip, published as a whole
//!   database ─► complete copy ────┘
//!
//!   one zip ─► plans of the nodes ─► shown, agreed to ─► steps on their libvirts ─► database
//! ```

pub(crate) mod agent;
mod apply;
mod ask;
pub(crate) mod backup;
pub(crate) mod bucket;
pub(crate) mod cli;
mod libvirt;
pub(crate) mod membership;
mod node;
pub(crate) mod permission;
pub(crate) mod place;
mod presence;
mod renewal;
mod restore;
mod restoring;
mod secrets;
mod validate;

pub(crate) use apply::restore;
pub(crate) use apply::source::read_node;
pub(crate) use ask::{NodeLine, nodes};
pub(crate) use backup::{BackupReport, Listed, backup, list};
pub(crate) use node::{Collection, Identity, collect, create, fingerprint, join};
pub(crate) use renewal::{Renewal, renew};
pub(crate) use restore::{RestoreReport, restore_database};
pub(crate) use secrets::{Recipients, new_identity};
pub(crate) use validate::{ValidateReport, validate};
