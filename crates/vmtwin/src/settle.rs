//! The settle recipe: a stored state becomes application-consistent disks, at any later time and on
//! any host that can run the machine.
//!
//! ```text
//!   snapshot with memory ─► restored to scratch, paused ─► twin: resumed, shut down by its own system
//!        ─► disks ─► new snapshot of the same point, which refers to the first
//! ```
//! The guest is not concerned, and need not be there.

use std::time::Instant;

use anyhow::{Result, bail};
use vmtwin_catalog::{JobId, JobKind, NewJob};
use vmtwin_repository::{Backup, IngestOptions, Repository, Snapshot};

use crate::backup::application::end_twin;
use crate::backup::store::Against;
use crate::backup::{BackupReport, Cx, end_job, store};
use crate::cli::{Consistency, SettleArgs};
use crate::command::snapshot::Detail;
use crate::content::Content;
use crate::failpoint;
use crate::isolated::Isolated;
use crate::libvirt::definition::STORED_AS;
use crate::restore::RestoreReport;
use crate::twin_args::TwinArgs;

/// Settles the snapshot that `args` names.
pub(crate) fn run(cx: &Cx<'_>, args: &SettleArgs) -> Result<BackupReport> {
    let begun = Instant::now();
    let repository = cx.home.repository()?;
    let snapshot = repository.snapshot(&args.id)?;
    let stored = Detail::read(&repository, &snapshot)?;
    if stored.content.memory.is_none() {
        bail!(
            "snapshot {} is {}-consistent and holds no memory; settle takes one of --consistency \
             state",
            &snapshot.id[..8],
            stored.content.consistency
        );
    }
    let new = NewJob {
        kind: JobKind::Settle,
        vm_id: None,
    };
    let job = cx.db.run(async |c| c.start_job(new).await)?;
    let mut report = BackupReport {
        vm: stored.content.vm.clone(),
        settled_from: Some(snapshot.id.clone()),
        consistency_asked: Consistency::Application.as_str().to_owned(),
        ..BackupReport::default()
    };
    let outcome = Settle {
        cx,
        args,
        job: &job,
        repository: &repository,
        snapshot: &snapshot,
        stored: &stored,
        report: &mut report,
    }
    .run();
    report.seconds.total = begun.elapsed().as_secs_f64();
    let text = outcome.as_ref().err().map(|error| format!("{error:#}"));
    end_job(cx.db, &job, text.as_deref(), &report)?;
    outcome.map(|()| report)
}

struct Settle<'a> {
    cx: &'a Cx<'a>,
    args: &'a SettleArgs,
    job: &'a JobId,
    repository: &'a Repository,
    snapshot: &'a Snapshot,
    stored: &'a Detail,
    report: &'a mut BackupReport,
}

impl Settle<'_> {
    fn run(mut self) -> Result<()> {
        let options = IngestOptions {
            cancel: Some(self.cx.cancel.flag()),
            ..IngestOptions::default()
        };
        let backup = self.repository.start_backup(&options)?;
        let isolated = Isolated {
            cx: self.cx,
            job: self.job,
            repository: self.repository,
            snapshot: self.snapshot,
            stored: self.stored,
            scratch: self.args.scratch.as_deref(),
            accel: self.args.accel.clone(),
        };
        let ending = self.ending()?;
        let begun = Instant::now();
        let content = isolated.with(|twin, restored| {
            let load_s = begun.elapsed().as_secs_f64();
            self.report.twin = Some(end_twin(self.cx, twin, &ending, load_s)?);
            self.report.seconds.twin = begun.elapsed().as_secs_f64();
            self.store(restored, &backup)
        })?;
        self.finish(backup, &content)
    }

    /// As asked, else as set for the guest, where the catalog of this host knows it.
    fn ending(&self) -> Result<TwinArgs> {
        let name = &self.stored.content.vm;
        match self.cx.db.run(async |c| c.vm_by_name(name).await) {
            Ok(vm) => self.args.twin.over(&vm),
            Err(vmtwin_catalog::Error::NoVm { .. }) => Ok(self.args.twin.clone()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores what the twin left.
    fn store(&mut self, restored: &RestoreReport, backup: &Backup) -> Result<Content> {
        let begun = Instant::now();
        let mut disks = Vec::new();
        for disk in &restored.disks {
            let (machine, image) = (
                &self.stored.machine,
                (disk.path.as_path(), disk.format.name()),
            );
            // It has no bitmap, so that nothing will build on it.
            let against = |_: &_, _: &_| Ok(Against::default());
            let stored = store::finished(
                self.cx,
                backup,
                machine,
                &disk.id,
                image,
                against,
                self.report,
            );
            disks.push(stored?);
        }
        self.report.seconds.disks = begun.elapsed().as_secs_f64();
        let content = Content {
            consistency: Consistency::Application.as_str().to_owned(),
            run_state: "shutdown".into(),
            settled_from: Some(self.snapshot.id.clone()),
            disks,
            memory: None,
            ..self.stored.content.clone()
        };
        store::manifest(backup, &self.stored.machine, &content)?;
        // Files beside the disks, as the twin left them.
        let files = self.stored.machine.files.iter().map(|f| {
            let path = restored.dir.join(f.stored_as.trim_start_matches('/'));
            (path, f.stored_as.as_str())
        });
        store::files(backup, files)?;
        let definition = restored.dir.join(STORED_AS.trim_start_matches('/'));
        if definition.exists() {
            store::files(backup, std::iter::once((definition, STORED_AS)))?;
        }
        Ok(content)
    }

    fn finish(self, backup: Backup, content: &Content) -> Result<()> {
        failpoint::pass("snapshot")?;
        let snapshot = backup.finish(store::meta(content, self.snapshot.time))?;
        self.report.consistency = Some(content.consistency.clone());
        self.report.time = Some(content.time.clone());
        self.report.snapshot = Some(snapshot.id.clone());
        let id = self.repository.id();
        if let Err(error) = store::note(self.cx.db, None, &id, &snapshot, self.report) {
            let text = format!("the catalog could not note the snapshot: {error:#}");
            self.cx.ui.note(&format!("warning: {text}"));
            self.report.warnings.push(text);
        }
        Ok(())
    }
}
