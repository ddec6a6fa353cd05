//! A snapshot's guest in a work folder: started beside whatever runs, cut off, and paused. What
//! settling and verifying have in common.
//!
//! Folder and process are in the journal before they are there, and gone after.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vmtwin_catalog::JobId;
use vmtwin_hypervisor::launch::Network;
use vmtwin_hypervisor::twin::{Twin, check_memory};
use vmtwin_hypervisor::undo::Undo;
use vmtwin_repository::{Repository, Snapshot};

use crate::backup::{Cx, job_tag, make_dir};
use crate::command::restore::Bars;
use crate::command::snapshot::Detail;
use crate::journal::JobJournal;
use crate::restore::{ImageFormat, RestoreReport, RestoreRequest, restore};
use crate::twin_slot::TwinSlot;

/// How long it may take until it is ready; its state is in when the restore has ended.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Which guest, and how.
pub(crate) struct Isolated<'a> {
    pub(crate) cx: &'a Cx<'a>,
    pub(crate) job: &'a JobId,
    pub(crate) repository: &'a Repository,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) stored: &'a Detail,
    /// Parent of the work folder; `None` for the home's.
    pub(crate) scratch: Option<&'a Path>,
    pub(crate) accel: Option<String>,
}

impl Isolated<'_> {
    /// Starts it, hands it to `act`, and removes all of it.
    ///
    /// # Errors
    /// Those of `act`, and of what comes before and after.
    pub(crate) fn with<T>(&self, act: impl FnOnce(Twin, &RestoreReport) -> Result<T>) -> Result<T> {
        let _slot = TwinSlot::take(self.cx)?;
        check_memory(self.stored.machine.memory_bytes)?;
        let dir = self.dir()?;
        let undos = [
            ("folder", Undo::DeletePath { path: dir.clone() }),
            (
                "twin",
                // QEMU, and a TPM emulator beside it.
                Undo::Process {
                    argument: dir.clone(),
                },
            ),
        ];
        let mut journal = JobJournal::without_guest(self.cx.db, self.job.clone());
        journal.within(&undos, |_| {
            let (twin, report) = self.start(&dir)?;
            act(twin, &report)
        })
    }

    fn dir(&self) -> Result<PathBuf> {
        let parent = match self.scratch {
            Some(dir) => std::path::absolute(dir)?,
            None => self.cx.home.run_dir()?,
        };
        Ok(parent.join(job_tag(self.job)))
    }

    fn start(&self, dir: &Path) -> Result<(Twin, RestoreReport)> {
        make_dir(dir)?;
        let request = RestoreRequest {
            dir: dir.to_owned(),
            format: Some(ImageFormat::Qcow2),
            force: false,
            instant: false,
            monitor: None,
            run: true,
            hold: true,
            network: Network::None,
            name: Some(format!(
                "{}-twin-{}",
                self.stored.content.vm,
                job_tag(self.job)
            )),
            accel: self.accel.clone(),
            disks: None,
            memory: false,
            guard: None,
        };
        let bars = Bars::new(self.cx.ui);
        let cancelled = || self.cx.cancel.is_set();
        let report = restore(self.repository, self.snapshot, &request, &bars, &cancelled)?;
        let running = report.running.as_ref().context("the guest did not start")?;
        let mut twin = Twin::adopt(running.pid, &running.qmp_socket, &running.qemu_log)?;
        twin.wait_ready(READY_TIMEOUT, &cancelled)?;
        Ok((twin, report))
    }
}
