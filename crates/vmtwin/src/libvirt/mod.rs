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
pub(crate) mod define;
pub(crate) mod defined;
pub(crate) mod definition;
pub(crate) mod instant;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod running;
pub(crate) mod state;
pub(crate) mod table;
mod tpm;
pub(crate) mod twin;
mod xml;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::Value;
use vmtwin_catalog::{ConnectionKind, Vm};
use vmtwin_hypervisor::qmp::Qmp;

pub(crate) use address::{Address, enable};

/// The definitions of a domain, with passwords of its displays.
pub(crate) struct Definitions {
    /// What it is started from.
    pub(crate) inactive: String,
    /// What runs; the same where nothing does.
    pub(crate) running: String,
}

/// The definitions of a guest of libvirt; `None` for other guests.
pub(crate) fn definitions_of(vm: &Vm) -> Result<Option<Definitions>> {
    if vm.connection.kind != ConnectionKind::Libvirt {
        return Ok(None);
    }
    let libvirt = vmtwin_libvirt::Connection::open(&vm.connection.address)?;
    let domain = libvirt.domain_by_uuid(vm.id.as_str())?;
    Ok(Some(Definitions {
        inactive: domain.definition()?,
        running: domain.migratable_xml()?,
    }))
}

/// Refuses while libvirt works on the guest's disks or moves it: what we put between a device and
/// its disk would be in the way of its job.
pub(crate) fn refuse_while_busy(qmp: &mut Qmp, vm: &Vm) -> Result<()> {
    if !qmp.is_relayed() {
        return Ok(());
    }
    let jobs = qmp.execute("query-block-jobs", Value::Null)?;
    if let Some(job) = jobs.as_array().and_then(|jobs| jobs.first()) {
        let kind = job["type"].as_str().unwrap_or("block");
        let name = &vm.name;
        bail!(
            "a {kind} job works on a disk of {name}; try again when it has ended (virsh domjobinfo \
             {name}, virsh domblklist {name} and virsh blockjob {name} DISK show it)"
        );
    }
    Ok(())
}

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
