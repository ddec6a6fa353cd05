//! The backup recipe: capture a guest, store what was captured, let the guest go.
//!
//! ```text
//!   recover ─► job ─► inspect ─► repository, lock ─► capture (pause of milliseconds)
//!     ─► memory stream into the spool ─► disks by NBD ─► release the guest
//!     ─► memory from the spool ─► snapshot ─► table, report
//! ```
//! The repository is opened and locked before the guest is touched, and the snapshot is written
//! last: a backup that fails at any step leaves the guest running and no snapshot. What comes after
//! the snapshot only brings the catalog's tables up to it: a failure there is a warning.

mod memory;
mod report;
mod stopped;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{InspectedDisk, Inspection, JobId, JobKind, NewJob, Outcome, Vm, VmState};
use vmtwin_hypervisor::capture::{Capture, CaptureError, CaptureOptions, Journal};
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::inspect::inspect;
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::spool::{SpoolData, SpoolOptions};
use vmtwin_hypervisor::undo::Undo;
use vmtwin_nbd::{Client, Options, context};
use vmtwin_repository::{Backup, ImageOptions, IngestOptions, Repository, Snapshot, SnapshotMeta};

use crate::cancel::Cancel;
use crate::cli::{BackupArgs, Consistency, Fallback, Order};
use crate::content::{self, CONTENT_FORMAT, Content, ContentDisk, ContentMemory};
use crate::db::Db;
use crate::home::Home;
use crate::journal::JobJournal;
use crate::source::NbdSource;
use crate::ui::{BarProgress, Ui};
use crate::{failpoint, recover};
pub(crate) use report::BackupReport;

/// How long to wait for a monitor's greeting.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for one answer of QEMU's NBD server. A guest's disk may be slow; it is not stuck.
const NBD_TIMEOUT: Duration = Duration::from_secs(120);
/// What a pause may last longer, per GiB, where it includes the snapshot's preparation.
const PREPARATION_PER_GIB: Duration = Duration::from_millis(500);

/// Everything a recipe needs from outside.
pub(crate) struct Cx<'a> {
    pub(crate) home: &'a Home,
    pub(crate) db: &'a Db,
    pub(crate) ui: &'a Ui,
    pub(crate) cancel: &'a Cancel,
}

/// Backs up the guests that `args` names, one after another.
pub(crate) fn run(cx: &Cx<'_>, args: &BackupArgs) -> Result<Vec<BackupReport>> {
    if matches!(
        args.consistency,
        Consistency::Application | Consistency::Filesystem
    ) {
        bail!(
            "--consistency {} is not in this version; use state or crash",
            args.consistency.as_str()
        );
    }
    let mut vms = Vec::new();
    for name in &args.vms {
        vms.push(cx.db.run(async |c| c.vm_by_name(name).await)?);
    }
    if args.order == Order::Random {
        shuffle(&mut vms)?;
    }
    let mut reports = Vec::new();
    for vm in &vms {
        let mut report = BackupReport {
            vm: vm.name.clone(),
            consistency_asked: args.consistency.as_str().to_owned(),
            ..BackupReport::default()
        };
        if let Err(error) = one(cx, args, vm, &mut report) {
            report.snapshot = None;
            report.consistency = None;
            report.error = Some(format!("{error:#}"));
        }
        reports.push(report);
        if cx.cancel.is_set() {
            break;
        }
    }
    Ok(reports)
}

/// Fisher–Yates with the system's random numbers.
fn shuffle(vms: &mut [Vm]) -> Result<()> {
    for i in (1..vms.len()).rev() {
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes).context("no random numbers from the system")?;
        let span = u64::try_from(i)? + 1;
        vms.swap(i, usize::try_from(u64::from_le_bytes(bytes) % span)?);
    }
    Ok(())
}

/// One guest: a job in the catalog around the work.
fn one(cx: &Cx<'_>, args: &BackupArgs, vm: &Vm, report: &mut BackupReport) -> Result<()> {
    let begun = Instant::now();
    let new = NewJob {
        kind: JobKind::Backup,
        vm_id: Some(vm.id.clone()),
    };
    let job = cx.db.run(async |c| c.start_job(new).await)?;
    let outcome = Work {
        cx,
        args,
        vm,
        job: &job,
        report,
        begun,
    }
    .run();
    report.seconds.total = begun.elapsed().as_secs_f64();
    let text = outcome.as_ref().err().map(|e| format!("{e:#}"));
    if let Err(error) = end_job(cx.db, &job, text.as_deref(), report) {
        // The next start ends the job's row as that of a process that is gone.
        let text = format!("the catalog could not note the end of the backup: {error:#}");
        warn(cx.ui, vm, report, text);
    }
    outcome
}

/// Tells the user now, and in the report.
fn warn(ui: &Ui, vm: &Vm, report: &mut BackupReport, text: String) {
    ui.note(&format!("warning: {}: {text}", vm.name));
    report.warnings.push(text);
}

/// Ends the job; one whose undos failed stays for recovery, with the error noted.
fn end_job(db: &Db, job: &JobId, error: Option<&str>, report: &BackupReport) -> Result<()> {
    let document = serde_json::to_value(report)?;
    let outcome = match error {
        None => Outcome::Done,
        Some(error) => Outcome::Failed {
            error: error.to_owned(),
        },
    };
    match db.run(async |c| c.finish_job(job, outcome, Some(&document)).await) {
        Err(vmtwin_catalog::Error::OpenSteps { .. }) => {
            let text = error.unwrap_or("something could not be undone");
            db.run(async |c| c.note_error(job, text).await)?;
            Ok(())
        }
        other => Ok(other?),
    }
}

/// The work on one guest.
struct Work<'a> {
    cx: &'a Cx<'a>,
    args: &'a BackupArgs,
    vm: &'a Vm,
    job: &'a JobId,
    report: &'a mut BackupReport,
    begun: Instant,
}

/// What a capture brought.
struct Captured {
    memory: Option<SpoolData>,
    disks: Vec<ContentDisk>,
    run_state: String,
    time: OffsetDateTime,
}

impl Work<'_> {
    fn run(mut self) -> Result<()> {
        let address = PathBuf::from(&self.vm.connection.address);
        let mut qmp = match Qmp::connect(&address, CONNECT_TIMEOUT) {
            Err(gone) if gone.is_gone() => return self.run_stopped(gone),
            other => other?,
        };
        let machine = inspect(&mut qmp)?;
        update_table(self.cx.db, self.vm, &machine)?;
        let consistency = self.choose_consistency(&machine)?;
        let (repository, backup) = self.open_repository()?;
        let captured = self.capture(qmp, &machine, consistency, &backup)?;
        self.finish(&repository, backup, &machine, consistency, captured)
    }

    /// Opens and locks the repository: whatever may be wrong with it shows before the guest is
    /// touched.
    fn open_repository(&mut self) -> Result<(Repository, Backup)> {
        let repository = self.cx.home.repository()?;
        let options = IngestOptions {
            cancel: Some(self.cx.cancel.flag()),
            ..IngestOptions::default()
        };
        // The lock of a backup that was killed would hinder others, such as a prune.
        if let Err(error) = repository.remove_stale_locks() {
            tracing::warn!(%error, "could not remove stale locks of the repository");
        }
        failpoint::pass("lock")?;
        let backup = repository.start_backup(&options)?;
        self.report.seconds.prepare = self.begun.elapsed().as_secs_f64();
        Ok((repository, backup))
    }

    /// Stores memory and the manifest, and writes the snapshot.
    fn finish(
        mut self,
        repository: &Repository,
        backup: Backup,
        machine: &Machine,
        consistency: Consistency,
        captured: Captured,
    ) -> Result<()> {
        let memory = self.store_memory(&backup, captured.memory.as_ref())?;
        let begun = Instant::now();
        let content = Content {
            format: CONTENT_FORMAT,
            vm: self.vm.name.clone(),
            consistency: consistency.as_str().to_owned(),
            time: captured.time.format(&Rfc3339)?,
            run_state: captured.run_state,
            disks: captured.disks,
            memory,
        };
        self.add_manifest(&backup, machine, &content)?;
        failpoint::pass("snapshot")?;
        let snapshot = backup.finish(self.meta(&content, captured.time))?;
        self.report.seconds.finish = begun.elapsed().as_secs_f64();
        self.report.consistency = Some(content.consistency.clone());
        self.report.time = Some(content.time.clone());
        self.report.snapshot = Some(snapshot.id.clone());
        self.report.seconds.total = self.begun.elapsed().as_secs_f64();
        if let Err(error) = self.note_snapshot(&repository.id(), &snapshot) {
            let id = &snapshot.id;
            self.warn(format!(
                "the catalog could not note snapshot {id}: {error:#}"
            ));
        }
        Ok(())
    }

    /// The promise that can be kept, or the reason why none can.
    fn choose_consistency(&mut self, machine: &Machine) -> Result<Consistency> {
        if !machine.blockers.is_empty() {
            bail!("{}", machine.blockers.join("; "));
        }
        if !machine.disks.iter().any(|d| d.included) && self.args.consistency == Consistency::Crash
        {
            bail!("the guest has no disk that a backup could take");
        }
        if self.args.consistency == Consistency::State && !machine.memory_blockers.is_empty() {
            let reasons = machine.memory_blockers.join("; ");
            if self.args.or != Some(Fallback::Crash) {
                bail!(
                    "the guest's memory cannot be captured: {reasons}; use --consistency crash, \
                     or --or crash to fall back by itself"
                );
            }
            self.warn(format!("stored as crash-consistent: {reasons}"));
            return Ok(Consistency::Crash);
        }
        Ok(self.args.consistency)
    }

    fn warn(&mut self, text: String) {
        warn(self.cx.ui, self.vm, self.report, text);
    }

    /// From the first touch of the guest to its release; disks are stored in between.
    fn capture(
        &mut self,
        qmp: Qmp,
        machine: &Machine,
        consistency: Consistency,
        backup: &Backup,
    ) -> Result<Captured> {
        let tag = job_tag(self.job);
        let dir = self.work_dir(&tag)?;
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let undo = Undo::DeletePath { path: dir.clone() };
        let (token, ()) = journal.around("folder", &undo, || make_dir(&dir))?;
        let options = self.capture_options(machine, consistency, tag, dir.clone())?;
        let outcome = self.captured(qmp, machine, &options, &mut journal, backup);
        undo.apply()?;
        journal.undone(token).map_err(anyhow::Error::from_boxed)?;
        outcome
    }

    fn work_dir(&self, tag: &str) -> Result<PathBuf> {
        let parent = match &self.args.scratch {
            Some(dir) => std::path::absolute(dir)?,
            None => self.cx.home.run_dir()?,
        };
        let dir = parent.join(tag);
        // The NBD socket lies in it: sun_path holds 107 bytes.
        if dir.as_os_str().len() > 95 {
            bail!(
                "the folder {} has too long a name for a socket; use --scratch",
                dir.display()
            );
        }
        Ok(dir)
    }

    fn capture_options(
        &self,
        machine: &Machine,
        consistency: Consistency,
        tag: String,
        dir: PathBuf,
    ) -> Result<CaptureOptions> {
        let mut spool = SpoolOptions::new(self.cx.home.spool_dir()?);
        spool.memory_limit_bytes = self.args.spool_memory_mib << 20;
        spool.deadline = Duration::from_secs(self.args.memory_deadline_s);
        // The preparation sends nothing while it touches every page.
        spool.stall = Duration::from_secs(60);
        let gib = u32::try_from(machine.memory_bytes >> 30)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        Ok(CaptureOptions {
            memory: consistency == Consistency::State,
            tag,
            dir,
            guard: GuardCommand {
                // This very program, also when its file was replaced by an upgrade meanwhile.
                program: PathBuf::from("/proc/self/exe"),
                args: vec!["pause-guard".into()],
            },
            pause_deadline: Duration::from_millis(self.args.pause_deadline_ms),
            preparation_limit: PREPARATION_PER_GIB.saturating_mul(gib),
            spool,
            collapse_limit: Duration::from_secs(self.args.collapse_limit_s),
        })
    }

    fn captured(
        &mut self,
        qmp: Qmp,
        machine: &Machine,
        options: &CaptureOptions,
        journal: &mut JobJournal<'_>,
        backup: &Backup,
    ) -> Result<Captured> {
        let cancelled = || self.cx.cancel.is_set();
        let begun = Instant::now();
        let spinner = self.cx.ui.spinner("capturing");
        let mut capture = Capture::begin(qmp, machine, options, journal, &cancelled)?;
        spinner.finish_and_clear();
        self.report.seconds.capture = begun.elapsed().as_secs_f64();
        let point = capture.point().clone();
        self.report.pause_ms = point.pause_ms;
        self.report.warnings.extend(point.warnings.iter().cloned());
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(point.time_us) * 1000)?;
        self.report.point = Some(point);
        let outcome = self.drain(&mut capture, machine, backup, options.spool.deadline);
        let released = capture.release();
        let (memory, disks) = outcome?;
        released?;
        let run_state = if self.report.pause_ms.is_some() {
            "running".into()
        } else {
            machine.run_state.clone()
        };
        Ok(Captured {
            memory,
            disks,
            run_state,
            time,
        })
    }

    /// Takes everything out of the guest: the memory stream, then the disks.
    fn drain(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        backup: &Backup,
        limit: Duration,
    ) -> Result<(Option<SpoolData>, Vec<ContentDisk>)> {
        let cancelled = || self.cx.cancel.is_set();
        let begun = Instant::now();
        failpoint::pass("memory stream")?;
        let spinner = self.cx.ui.spinner("memory into the spool");
        let memory = capture.finish_memory(limit, &cancelled)?;
        spinner.finish_and_clear();
        self.report.seconds.memory = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let mut disks = Vec::new();
        for disk in machine.disks.iter().filter(|d| d.included) {
            failpoint::pass(&format!("read {}", disk.id))?;
            disks.push(self.store_disk(capture, disk, backup)?);
        }
        self.report.seconds.disks = begun.elapsed().as_secs_f64();
        if self.cx.cancel.is_set() {
            return Err(CaptureError::Cancelled.into());
        }
        Ok((memory, disks))
    }

    fn store_disk(
        &mut self,
        capture: &Capture<'_>,
        disk: &Disk,
        backup: &Backup,
    ) -> Result<ContentDisk> {
        let options = Options {
            request_timeout: NBD_TIMEOUT,
            ..Options::with_contexts([context::BASE_ALLOCATION])
        };
        let client = Client::connect_unix(capture.nbd_socket(), &disk.id, &options)
            .with_context(|| format!("cannot read the point-in-time view of disk {}", disk.id))?;
        self.store_image(disk, client, backup)
    }

    /// Stores what an NBD export shows as the image of `disk`.
    fn store_image(&mut self, disk: &Disk, client: Client, backup: &Backup) -> Result<ContentDisk> {
        let size_bytes = client.size_bytes();
        let source = NbdSource::new(client);
        let bar = self.cx.ui.bar(&format!("disk {}", disk.id), size_bytes);
        let progress = BarProgress {
            bar,
            cancel: self.cx.cancel,
        };
        let stats = backup
            .add_image(
                &content::disk_dir(&disk.id),
                &source,
                &ImageOptions::default(),
                &progress,
            )
            .with_context(|| {
                format!(
                    "disk {} could not be stored (if reading failed: scratch may be full, or the \
                     guest was powered off)",
                    disk.id
                )
            })?;
        progress.bar.finish_and_clear();
        self.report.count(&stats);
        Ok(ContentDisk {
            id: disk.id.clone(),
            size_bytes,
            format: disk.format.clone(),
        })
    }

    fn store_memory(
        &mut self,
        backup: &Backup,
        spool: Option<&SpoolData>,
    ) -> Result<Option<ContentMemory>> {
        let Some(spool) = spool else { return Ok(None) };
        let begun = Instant::now();
        failpoint::pass("store memory")?;
        let stored = memory::store(backup, spool, self.cx.ui, self.cx.cancel)
            .context("memory could not be stored")?;
        for stats in &stored.stats {
            self.report.count(stats);
        }
        if let Some(warning) = stored.warning {
            self.warn(warning);
        }
        self.report.seconds.store_memory = begun.elapsed().as_secs_f64();
        Ok(Some(stored.content))
    }

    fn add_manifest(
        &mut self,
        backup: &Backup,
        machine: &Machine,
        content: &Content,
    ) -> Result<()> {
        backup.add_bytes(content::MACHINE_JSON, &serde_json::to_vec_pretty(machine)?)?;
        for file in &machine.files {
            let mut reader = std::fs::File::open(&file.path)
                .with_context(|| format!("cannot read {} ({})", file.path, file.role))?;
            backup.add_reader(&file.stored_as, &mut reader)?;
        }
        backup.add_bytes(content::SNAPSHOT_JSON, &serde_json::to_vec_pretty(content)?)?;
        Ok(())
    }

    fn meta(&self, content: &Content, time: OffsetDateTime) -> SnapshotMeta {
        SnapshotMeta {
            time,
            tags: vec![
                "vmtwin".into(),
                format!("vm={}", self.vm.name),
                format!("consistency={}", content.consistency),
            ],
            paths: vec![format!("/vm/{}", self.vm.name)],
            ..SnapshotMeta::default()
        }
    }

    /// Adds the snapshot to the catalog's table, which is a cache of what the repository holds.
    fn note_snapshot(&self, repository_id: &str, snapshot: &Snapshot) -> Result<()> {
        failpoint::pass("catalog")?;
        let consistency = |text: &str| text.parse::<vmtwin_catalog::Consistency>();
        let row = vmtwin_catalog::Snapshot {
            id: snapshot.id.clone(),
            repository_id: repository_id.to_owned(),
            vm_id: Some(self.vm.id.clone()),
            vm_name: self.vm.name.clone(),
            time: snapshot.time,
            consistency: consistency(self.report.consistency.as_deref().unwrap_or_default())?,
            consistency_asked: consistency(&self.report.consistency_asked)?,
            bytes_read: self.report.bytes_read,
            bytes_new: self.report.bytes_new,
            bytes_stored: self.report.bytes_stored,
            parent: None,
            state: vmtwin_catalog::SnapshotState::Complete,
            report: serde_json::to_value(&*self.report)?,
        };
        self.cx.db.run(async |c| c.upsert_snapshot(&row).await)?;
        Ok(())
    }
}

/// Eight characters that tell a job's nodes and work folder apart.
pub(crate) fn job_tag(job: &JobId) -> String {
    let digits = job.as_str().chars().filter(|c| *c != '-');
    digits.take(8).collect()
}

fn make_dir(dir: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))
}

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

fn inspected(disk: &Disk) -> InspectedDisk {
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

/// Recovers first, then backs up.
pub(crate) fn recover_and_run(cx: &Cx<'_>, args: &BackupArgs) -> Result<Vec<BackupReport>> {
    recover::dead_jobs(cx)?;
    run(cx, args)
}
