//! A twin's row in the VM table, as long as the twin is there: of which guest it is, and to which
//! images its disks were switched.

use anyhow::Result;
use vmtwin_catalog::{Connection, ConnectionKind, Inspection, NewVm, Vm, VmId, VmRole, VmState};
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::twin::{Overlay, TwinPlan};

use crate::backup::inspected;
use crate::db::Db;

/// The row. Dropping it removes it; after a crash recovery does.
pub(crate) struct TwinRow<'a> {
    db: &'a Db,
    id: VmId,
}

/// What the table tells of a twin.
pub(crate) struct Described<'a> {
    /// Its own uuid, where it has one.
    pub(crate) id: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) connection: Connection,
    pub(crate) overlays: &'a [Overlay],
}

impl<'a> Described<'a> {
    /// A process of vmtwin's.
    pub(crate) fn of(plan: &'a TwinPlan) -> Described<'a> {
        Described {
            id: None,
            name: plan.name(),
            connection: Connection {
                kind: ConnectionKind::Qmp,
                address: plan.qmp_socket().display().to_string(),
            },
            overlays: plan.overlays(),
        }
    }
}

impl<'a> TwinRow<'a> {
    /// Adds the row of a twin of `guest` that is about to be started.
    pub(crate) fn add(
        db: &'a Db,
        guest: &Vm,
        machine: &Machine,
        twin: &Described<'_>,
    ) -> Result<TwinRow<'a>> {
        let new = NewVm {
            id: twin.id.map(str::parse).transpose()?,
            name: twin.name.to_owned(),
            connection: twin.connection.clone(),
            role: VmRole::Twin,
            twin_of: Some(guest.id.clone()),
            node: guest.node.clone(),
        };
        let id = db.run(async |c| c.add_vm(new).await)?;
        let row = TwinRow { db, id };
        let disks = machine.disks.iter().map(inspected);
        let found = Inspection {
            state: VmState::Paused,
            memory_bytes: Some(machine.memory_bytes),
            machine: serde_json::Value::Null,
            disks: disks.filter(|disk| disk.included).collect(),
        };
        db.run(async |c| c.update_inspection(&row.id, found).await)?;
        for overlay in twin.overlays {
            let image = overlay.path.display().to_string();
            db.run(async |c| c.record_switch(&row.id, &overlay.disk_id, &image).await)?;
        }
        Ok(row)
    }

    /// Notes that it runs.
    pub(crate) fn runs(&self) -> Result<()> {
        let running = VmState::Running;
        Ok(self
            .db
            .run(async |c| c.set_state(&self.id, running).await)?)
    }
}

impl Drop for TwinRow<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.db.run(async |c| c.remove_vm(&self.id).await) {
            tracing::warn!(%error, "the row of a twin stays in the table until: vmtwin recover");
        }
    }
}
