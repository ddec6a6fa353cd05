//! A guest that does not run: its disks, read from where its definition has them, or where they were
//! when it was last seen running.
//!
//! Nothing is discontinued and nothing resumed. QEMU's image locks see to it that nobody writes to
//! a disk while it is read.

use std::path::Path;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use vmtwin_catalog::ConnectionKind;
use vmtwin_hypervisor::machine::{Disk, MACHINE_FORMAT, Machine};
use vmtwin_hypervisor::qmp::QmpError;
use vmtwin_repository::Backup;

use super::store::{self, Against};
use super::{Captured, Drained, Work, update_table};
use crate::cli::Consistency;
use crate::content::ContentDisk;
use crate::libvirt::defined::Defined;
use crate::restore::NbdServer;

impl Work<'_> {
    /// Backs up a guest that does not run.
    pub(super) fn run_stopped(mut self, gone: QmpError) -> Result<()> {
        let mut machine = self.stopped_machine(gone)?;
        let mut included = machine.disks.iter().filter(|disk| disk.included).peekable();
        if included.peek().is_none() {
            bail!("the guest is not running, and has no disk that a backup could take");
        }
        if let Some(disk) = included.find(|disk| !disk.kind.is_local()) {
            bail!(
                "the guest is not running, and disk {} is not a file of this host",
                disk.id
            );
        }
        if self.args.consistency != Consistency::Crash {
            self.warn("the guest is not running: its disks alone were stored".into());
        }
        let (repository, backup) = self.open_repository()?;
        let time = OffsetDateTime::now_utc();
        let mut disks = Vec::new();
        let cwd = machine.cwd.clone();
        for disk in machine.disks.iter_mut().filter(|d| d.included) {
            disks.push(self.store_stopped_disk(&cwd, disk, &backup)?);
        }
        if self.definitions.is_some() {
            update_table(self.cx.db, self.vm, &machine)?;
        }
        let captured = Captured {
            drained: Drained {
                memory: None,
                disks,
                consistency: Consistency::Crash,
            },
            run_state: "shutdown".into(),
            time,
        };
        self.finish(&repository, backup, &machine, captured)
            .map(drop)
    }

    /// What is known of the guest. Its definition counts where there is one: somebody may have
    /// changed its disks since it was last seen running, or taken a snapshot of them.
    fn stopped_machine(&self, gone: QmpError) -> Result<Machine> {
        let seen = self.vm.machine.clone().map(serde_json::from_value);
        let seen: Option<Machine> = seen
            .transpose()
            .context("the catalog's record of the guest is not valid; run: vmtwin vm show")?;
        match (&self.definitions, seen) {
            (Some(xml), seen) => as_defined(&Defined::parse(&xml.inactive)?, seen),
            // Its disks may be another host's by now.
            (None, _) if self.vm.connection.kind == ConnectionKind::Libvirt => bail!(
                "the guest does not run on this host, and its libvirt has no definition of it: it \
                 was undefined, or moved to another host; back it up there"
            ),
            (None, Some(seen)) => Ok(seen),
            (None, None) => Err(gone.into()),
        }
    }

    fn store_stopped_disk(
        &mut self,
        cwd: &str,
        disk: &mut Disk,
        backup: &Backup,
    ) -> Result<ContentDisk> {
        // QEMU names files as its command line does: from its own folder.
        let image = Path::new(cwd).join(&disk.address);
        let (server, client) = NbdServer::start_reading(&image, &disk.format)
            .with_context(|| format!("cannot read disk {} of the stopped guest", disk.id))?;
        disk.size_bytes = client.size_bytes();
        let against = Against::default();
        let stored = store::image(self.cx, backup, disk, client, against, self.report);
        drop(server);
        self.note_reading(&disk.id, Some("the guest was not running".into()));
        stored
    }
}

/// The machine as it would be started now.
fn as_defined(defined: &Defined, seen: Option<Machine>) -> Result<Machine> {
    let mut disks = defined.disks()?;
    let Some(seen) = seen else {
        return Ok(Machine {
            format: MACHINE_FORMAT,
            name: Some(defined.name.clone()),
            uuid: defined.uuid.clone(),
            qemu_version: String::new(),
            machine_type: defined.machine_type().to_owned(),
            run_state: "shutdown".into(),
            memory_bytes: defined.memory_bytes(),
            pid: 0,
            uid: 0,
            cwd: "/".into(),
            args: Vec::new(),
            disks,
            files: Vec::new(),
            memory_blockers: Vec::new(),
            blockers: Vec::new(),
        });
    };
    for disk in &mut disks {
        if let Some(then) = seen.disks.iter().find(|then| then.id == disk.id) {
            disk.qdev.clone_from(&then.qdev);
            disk.node_name.clone_from(&then.node_name);
        }
    }
    // A command line is of no use for other disks.
    let fits = ids_of(&disks).eq(ids_of(&seen.disks));
    Ok(Machine {
        run_state: "shutdown".into(),
        args: if fits { seen.args } else { Vec::new() },
        disks,
        ..seen
    })
}

/// Sorted ids and formats of disks that a backup takes.
fn ids_of(disks: &[Disk]) -> impl Iterator<Item = (&str, &str)> {
    let taken = disks.iter().filter(|disk| disk.included);
    let mut ids: Vec<_> = taken.map(|d| (d.id.as_str(), d.format.as_str())).collect();
    ids.sort_unstable();
    ids.into_iter()
}
