//! A restored guest becomes a domain of libvirt again (`restore --libvirt`).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use vmtwin_hypervisor::machine::Machine;
use vmtwin_libvirt::{Connection, Kind};
use vmtwin_repository::SnapshotReader;

use super::definition::{self, Changed, NewDisk, STORED_AS};
use crate::content::{Content, MACHINE_JSON, MAX_JSON_BYTES, SNAPSHOT_JSON};
use crate::restore::RestoreReport;
use crate::ui::Ui;

/// Others may enter the folder, since QEMU runs as another user; what is in it stays as it is.
const ENTER_MODE: u32 = 0o711;

/// What is to be defined, checked before anything is restored.
pub(crate) struct Plan {
    libvirt: Connection,
    xml: String,
    machine: Machine,
    name: Option<String>,
}

impl Plan {
    /// Reads the definition in a snapshot, checks that it can be defined, and shows what will be
    /// different.
    pub(crate) fn new(
        ui: &Ui,
        reader: &SnapshotReader,
        uri: &str,
        name: Option<&str>,
        dir: &Path,
    ) -> Result<Plan> {
        let xml = reader.read_file(STORED_AS, MAX_JSON_BYTES).context(
            "the snapshot holds no definition of a libvirt guest; restore without --libvirt",
        )?;
        let read = |path| reader.read_file(path, MAX_JSON_BYTES);
        let content: Content = serde_json::from_slice(&read(SNAPSHOT_JSON)?)?;
        let plan = Plan {
            libvirt: Connection::open(uri).with_context(|| format!("cannot connect to {uri}"))?,
            xml: String::from_utf8(xml).context("the stored definition is not text")?,
            machine: serde_json::from_slice(&read(MACHINE_JSON)?)?,
            name: name.map(str::to_owned),
        };
        let ids = content.disks.iter().map(|disk| disk.id.as_str());
        let disks = ids.map(|id| plan.disk(id, dir.join(id)));
        let changed = plan.change(&disks.collect::<Result<Vec<_>>>()?)?;
        plan.refuse_if_there(&changed)?;
        for change in &changed.changes {
            ui.note(&format!("{}: {change}", changed.name));
        }
        for network in &changed.networks {
            if plan.libvirt.object(Kind::Network, network).is_err() {
                let name = &changed.name;
                ui.note(&format!(
                    "warning: {name} needs network {network}, which this host does not have"
                ));
            }
        }
        Ok(plan)
    }

    fn disk(&self, id: &str, new: std::path::PathBuf) -> Result<NewDisk> {
        let old = definition::address_of(&self.machine, id);
        Ok(NewDisk {
            old: old.with_context(|| format!("the snapshot does not tell what disk {id} was"))?,
            new,
        })
    }

    fn change(&self, disks: &[NewDisk]) -> Result<Changed> {
        definition::change(&self.xml, self.name.as_deref(), disks)
    }

    fn refuse_if_there(&self, changed: &Changed) -> Result<()> {
        let name = &changed.name;
        let uuid = changed.uuid.as_deref();
        let by_uuid = uuid.is_some_and(|uuid| self.libvirt.domain_by_uuid(uuid).is_ok());
        if by_uuid || self.libvirt.domain(name).is_ok() {
            bail!(
                "libvirt has domain {name}; give another name (--as NAME) to restore a copy beside \
                 it, or take it away first: virsh undefine {name}"
            );
        }
        Ok(())
    }

    /// Defines the domain on the restored disks; returns its name.
    pub(crate) fn define(&self, report: &RestoreReport) -> Result<String> {
        let disks = report.disks.iter();
        let disks = disks.map(|disk| self.disk(&disk.id, disk.path.clone()));
        let changed = self.change(&disks.collect::<Result<Vec<_>>>()?)?;
        self.refuse_if_there(&changed)?;
        let open = std::fs::Permissions::from_mode(ENTER_MODE);
        std::fs::set_permissions(&report.dir, open)?;
        let restored = format!("the disks are restored in {}", report.dir.display());
        let domain = self.libvirt.define_domain(&changed.xml).with_context(|| {
            format!("{restored}, but libvirt does not take the definition beside them")
        })?;
        Ok(domain.name())
    }
}
