//! Guests of libvirt: rows of the table that follow its domains, and monitors through its daemon.
//!
//! ```text
//!   vmtwin ─┬─ socket pair ─► relay (`vmtwin libvirt-monitor`) ─► libvirtd ─► QEMU's monitor
//!   guard ──┘                   events ◄──────────────────────────┘
//! ```
//! All recipes talk QMP, and a guest of libvirt has an address as any other: an [`Address`] as
//! text, which a relay is started for. libvirt is loaded by the relay and by [`table`] only, so
//! that the binary serves hosts without it.

mod address;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod table;

use std::path::PathBuf;

use vmtwin_catalog::{ConnectionKind, Vm};

pub(crate) use address::{Address, enable};

/// Where a guest's monitor is: the path of a socket, or what a relay is started for.
pub(crate) fn monitor_of(vm: &Vm) -> PathBuf {
    match vm.connection.kind {
        ConnectionKind::Qmp => PathBuf::from(&vm.connection.address),
        ConnectionKind::Libvirt => Address {
            uri: vm.connection.address.clone(),
            uuid: vm.id.to_string(),
        }
        .to_path(),
    }
}
