//! What an inspection of a guest writes into the VM table.

use anyhow::Result;
use vmtwin_catalog::{InspectedDisk, Inspection, Vm, VmState};
use vmtwin_hypervisor::machine::{Disk, Machine};

use crate::db::Db;

/// Brings the VM table up to what QEMU reports.
pub(crate) fn update_table(db: &Db, vm: &Vm, machine: &Machine) -> Result<()> {
    let found = Inspection {
        state: vm_state(&machine.run_state),
        memory_bytes: Some(machine.memory_bytes),
        machine: serde_json::to_value(machine)?,
        disks: machine.disks.iter().map(inspected).collect(),
    };
    db.run(async |c| c.update_inspection(&vm.id, found).await)?;
    Ok(())
}

fn vm_state(run_state: &str) -> VmState {
    match run_state {
        "running" => VmState::Running,
        "paused" | "suspended" | "io-error" | "prelaunch" => VmState::Paused,
        "shutdown" => VmState::Stopped,
        _ => VmState::Unknown,
    }
}

pub(crate) fn inspected(disk: &Disk) -> InspectedDisk {
    let kind = serde_json::to_value(disk.kind).ok();
    InspectedDisk {
        disk_id: disk.id.clone(),
        node: Some(disk.node_name.clone()),
        qdev: Some(disk.qdev.clone()),
        address: disk.address.clone(),
        kind: kind
            .as_ref()
            .and_then(|k| k.as_str())
            .unwrap_or("other")
            .to_owned(),
        size_bytes: disk.size_bytes,
        format: disk.format.clone(),
        read_only: disk.read_only,
        included: disk.included,
    }
}
