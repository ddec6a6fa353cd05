//! A guest whose QEMU is gone: its disks, read from where it was last seen to have them.
//!
//! Nothing is discontinued and nothing resumed. QEMU's image locks see to it that nobody writes to
//! a disk while it is read.

use std::path::Path;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_hypervisor::qmp::QmpError;
use vmtwin_repository::Backup;

use super::store::{self, Against};
use super::{Captured, Drained, Work};
use crate::cli::Consistency;
use crate::content::ContentDisk;
use crate::restore::NbdServer;

impl Work<'_> {
    /// Backs up a guest that does not run.
    pub(super) fn run_stopped(mut self, gone: QmpError) -> Result<()> {
        let Some(machine) = self.vm.machine.clone() else {
            return Err(gone.into());
        };
        let machine: Machine = serde_json::from_value(machine)
            .context("the catalog's record of the guest is not valid; run: vmtwin vm show")?;
        if let Some(disk) = machine
            .disks
            .iter()
            .find(|d| d.included && !d.kind.is_local())
        {
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
        for disk in machine.disks.iter().filter(|d| d.included) {
            disks.push(self.store_stopped_disk(&machine, disk, &backup)?);
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

    fn store_stopped_disk(
        &mut self,
        machine: &Machine,
        disk: &Disk,
        backup: &Backup,
    ) -> Result<ContentDisk> {
        // QEMU names files as its command line does: from its own folder.
        let image = Path::new(&machine.cwd).join(&disk.address);
        let (server, client) = NbdServer::start_reading(&image, &disk.format)
            .with_context(|| format!("cannot read disk {} of the stopped guest", disk.id))?;
        let against = Against::default();
        let stored = store::image(self.cx, backup, disk, client, against, self.report);
        drop(server);
        self.note_reading(&disk.id, Some("the guest was not running".into()));
        stored
    }
}
