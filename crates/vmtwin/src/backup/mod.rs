//! The backup recipe: capture a guest, store what was captured, let the guest go.
//!
//! ```text
//!   recover ─► job ─► inspect ─► repository, lock ─► capture (pause of milliseconds)
//!     ─► memory stream into the spool ─► disks by NBD ─► release the guest
//!     ─► memory from the spool ─► snapshot ─► table, report
//! ```
//! The repository is opened and locked before the guest is touched, and the snapshot is written
//! last: a backup that fails at any step leaves the guest running and no snapshot. What comes after
//! the snapshot only brings the catalog's tables up to it, and copies it to further repositories
//! (`also.rs`): a failure there is a warning.

mod also;
pub(crate) mod application;
mod base;
mod disks;
mod explain;
pub(crate) mod freeze;
mod memory;
mod report;
mod stopped;
pub(crate) mod store;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{JobId, JobKind, NewJob, Outcome, Vm, VmRole};
use vmtwin_hypervisor::capture::{Capture, CaptureOptions, Journal};
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::inspect::inspect;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::spool::{SpoolData, SpoolOptions};
use vmtwin_hypervisor::undo::{GuestRef, Undo};
use vmtwin_repository::{Backup, IngestOptions, Repository};

use self::application::PlannedTwin;
use self::base::Base;
use self::disks::Sink;
use self::explain::explain;
use crate::cancel::Cancel;
use crate::cli::{BackupArgs, CaptureArgs, Consistency, Fallback, Order};
use crate::cluster::place::Here;
use crate::content::{CONTENT_FORMAT, Content, ContentDisk, ContentMemory};
use crate::db::Db;
use crate::home::Home;
use crate::journal::JobJournal;
use crate::libvirt::{Definitions, definition, definitions_of, monitor_of, refuse_while_busy};
use crate::ui::Ui;
use crate::{failpoint, recover};
pub(crate) use report::BackupReport;
pub(crate) use table::{inspected, update_table};

/// How long to wait for a monitor's greeting.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Nice value of the threads that store.
const STORE_NICE: i32 = 10;
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
    for name in &args.also {
        cx.home.named_one(name)?;
    }
    let mut vms = Vec::new();
    for name in &args.vms {
        let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
        if vm.role == VmRole::Twin {
            bail!("{name} is a twin; back up the guest it was made of");
        }
        vms.push(vm);
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
            report.repository = None;
            report.snapshot = None;
            report.consistency = None;
            report.error = Some(format!("{error:#}"));
        }
        reports.push(report);
        if cx.cancel.is_set() {
            break;
        }
    }
    // When no guest waits for its backup any more.
    for (vm, report) in vms.iter().zip(&mut reports) {
        also::copy(cx, vm, &also::names(args, vm)?, report);
    }
    Ok(reports)
}

/// Fisher–Yates with the system's random numbers.
pub(crate) fn shuffle(vms: &mut [Vm]) -> Result<()> {
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
        definitions: None,
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
pub(crate) fn end_job(
    db: &Db,
    job: &JobId,
    error: Option<&str>,
    report: &BackupReport,
) -> Result<()> {
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
    /// libvirt's, where it is a guest of libvirt.
    definitions: Option<Definitions>,
}

/// What a backup promises, and the twin that keeps it.
struct Promise {
    consistency: Consistency,
    twin: Option<PlannedTwin>,
    /// The agent that freezes file systems.
    agent: Option<PathBuf>,
}

/// Whether the catalog knows a snapshot that was saved, so that the next can build on it.
enum Noted {
    Yes,
    No,
}

/// What came out of the guest.
struct Drained {
    memory: Option<SpoolData>,
    disks: Vec<ContentDisk>,
    /// What was kept.
    consistency: Consistency,
}

/// What a capture brought.
struct Captured {
    drained: Drained,
    run_state: String,
    time: OffsetDateTime,
}

impl Work<'_> {
    fn run(mut self) -> Result<()> {
        match definitions_of(self.vm) {
            Ok(definitions) => self.definitions = definitions,
            Err(error) => self.warn(format!("its definition is not stored: {error:#}")),
        }
        let address = monitor_of(self.vm);
        let mut qmp = match Qmp::connect(&address, CONNECT_TIMEOUT) {
            Err(gone) if gone.is_gone() => return self.run_stopped(gone),
            other => other?,
        };
        refuse_while_busy(&mut qmp, self.vm)?;
        let machine = inspect(&mut qmp)?;
        update_table(self.cx.db, self.vm, &machine)?;
        let promise = self.choose_promise(&machine)?;
        let (repository, backup) = self.open_repository()?;
        let base = self.find_base(&mut qmp, &machine, &repository, &backup)?;
        let marks = self.mark(&mut qmp, &machine, &repository)?;
        let guest = GuestRef::of(&qmp).context("the guest is gone")?;
        self.report.bitmap = Some(marks.name.clone());
        let stored = self.capture_and_store(qmp, &machine, &promise, &repository, backup, &base);
        match stored {
            Ok(Noted::Yes) => self.advance(marks),
            Ok(Noted::No) | Err(_) => self.unmark(&marks)?,
        }
        stored
            .map(drop)
            .map_err(|error| explain(error, &self.vm.name, &guest))
    }

    fn capture_and_store(
        &mut self,
        qmp: Qmp,
        machine: &Machine,
        promise: &Promise,
        repository: &Repository,
        backup: Backup,
        base: &Base,
    ) -> Result<Noted> {
        let sink = Sink {
            backup: &backup,
            base,
        };
        let captured = self.capture(qmp, machine, promise, &sink)?;
        self.finish(repository, backup, machine, captured)
    }

    /// Opens and locks the repository: whatever may be wrong with it shows before the guest is
    /// touched.
    fn open_repository(&mut self) -> Result<(Repository, Backup)> {
        let names = also::names(self.args, self.vm)?;
        let (name, repository, passed_over) = also::open_first(self.cx, &names)?;
        if let Some(why) = passed_over {
            self.warn(format!("backed up to {name} alone, since: {why}"));
        }
        self.report.repository = Some(name);
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
        &mut self,
        repository: &Repository,
        backup: Backup,
        machine: &Machine,
        captured: Captured,
    ) -> Result<Noted> {
        let drained = captured.drained;
        let memory = self.store_memory(&backup, drained.memory.as_ref())?;
        let begun = Instant::now();
        let content = Content {
            format: CONTENT_FORMAT,
            vm: self.vm.name.clone(),
            consistency: drained.consistency.as_str().to_owned(),
            time: captured.time.format(&Rfc3339)?,
            run_state: captured.run_state,
            settled_from: None,
            disks: drained.disks,
            memory,
        };
        store::manifest(&backup, machine, &content)?;
        let files = machine.files.iter();
        store::files(
            &backup,
            files.map(|f| (PathBuf::from(&f.path), f.stored_as.as_str())),
        )?;
        if let Some(Definitions { inactive, running }) = &self.definitions {
            backup.add_bytes(definition::STORED_AS, inactive.as_bytes())?;
            if content.memory.is_some() {
                backup.add_bytes(definition::RUNNING_STORED_AS, running.as_bytes())?;
            }
        }
        failpoint::pass("snapshot")?;
        let mut meta = store::meta(&content, captured.time);
        meta.tags.extend(self.args.tags.iter().cloned());
        let snapshot = backup.finish(meta)?;
        self.report.seconds.finish = begun.elapsed().as_secs_f64();
        self.report.consistency = Some(content.consistency.clone());
        self.report.time = Some(content.time.clone());
        self.report.snapshot = Some(snapshot.id.clone());
        self.report.seconds.total = self.begun.elapsed().as_secs_f64();
        let (id, vm_id) = (repository.id(), Some(self.vm.id.clone()));
        if let Err(error) = store::note(self.cx.db, vm_id, &id, &snapshot, self.report) {
            let id = &snapshot.id;
            self.warn(format!(
                "the catalog could not note snapshot {id}: {error:#}"
            ));
            return Ok(Noted::No);
        }
        Ok(Noted::Yes)
    }

    /// The promise that can be kept, or the reason why none can.
    fn choose_promise(&mut self, machine: &Machine) -> Result<Promise> {
        if !machine.blockers.is_empty() {
            bail!("{}", machine.blockers.join("; "));
        }
        let consistency = self.args.consistency;
        if !machine.disks.iter().any(|d| d.included) && consistency != Consistency::State {
            bail!("the guest has no disk that a backup could take");
        }
        let promised = match consistency {
            Consistency::Crash => Ok((None, None)),
            Consistency::Filesystem => self.agent(machine).map(|agent| (None, Some(agent))),
            Consistency::State => memory_can_be_had(machine).map(|()| (None, None)),
            Consistency::Application => memory_can_be_had(machine)
                .and_then(|()| self.plan_twin(machine))
                .map(|twin| (Some(twin), None)),
        };
        match promised {
            Ok((twin, agent)) => Ok(Promise {
                consistency,
                twin,
                agent,
            }),
            Err(reason) if self.args.or == Some(Fallback::Crash) => {
                self.warn(format!("stored as crash-consistent: {reason:#}"));
                Ok(Promise {
                    consistency: Consistency::Crash,
                    twin: None,
                    agent: None,
                })
            }
            Err(reason) => {
                let asked = consistency.as_str();
                Err(reason.context(format!(
                    "{asked} consistency can't be had; use another --consistency, or --or crash \
                     to fall back by itself"
                )))
            }
        }
    }

    fn warn(&mut self, text: String) {
        warn(self.cx.ui, self.vm, self.report, text);
    }

    /// From the first touch of the guest to its release; disks are stored in between.
    fn capture(
        &mut self,
        qmp: Qmp,
        machine: &Machine,
        promise: &Promise,
        sink: &Sink<'_>,
    ) -> Result<Captured> {
        let tag = job_tag(self.job);
        let dir = self.work_dir(&tag)?;
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let undo = Undo::DeletePath { path: dir.clone() };
        let (token, ()) = journal.around("folder", &undo, || make_dir(&dir))?;
        let args = &self.args.capture;
        let mut options = capture_options(self.cx, machine, args, tag, dir.clone())?;
        options.memory = matches!(
            promise.consistency,
            Consistency::State | Consistency::Application
        );
        options.bitmaps = sink.base.bitmaps();
        let outcome = self.captured(qmp, machine, &options, promise, &mut journal, sink);
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

    fn captured(
        &mut self,
        qmp: Qmp,
        machine: &Machine,
        options: &CaptureOptions,
        promise: &Promise,
        journal: &mut JobJournal<'_>,
        sink: &Sink<'_>,
    ) -> Result<Captured> {
        let cancelled = || self.cx.cancel.is_set();
        let begun = Instant::now();
        let spinner = self.cx.ui.spinner("capturing");
        let guest = GuestRef::of(&qmp).context("the guest is gone")?;
        let frozen = promise.agent.clone().map(|agent| self.freeze(guest, agent));
        let frozen = frozen.transpose()?;
        let mut capture = Capture::begin(qmp, machine, options, journal, &cancelled)?;
        if let Some(frozen) = frozen {
            self.report.frozen_ms = Some(frozen.thaw()?.as_secs_f64() * 1000.0);
        }
        spinner.finish_and_clear();
        step_back();
        self.report.seconds.capture = begun.elapsed().as_secs_f64();
        let point = capture.point().clone();
        self.report.pause_ms = point.pause_ms;
        self.report.warnings.extend(point.warnings.iter().cloned());
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(point.time_us) * 1000)?;
        self.report.point = Some(point);
        let limit = options.spool.deadline;
        let outcome = match &promise.twin {
            Some(twin) => self.through_twin(&mut capture, machine, twin, sink, limit),
            None => self.drain(&mut capture, machine, promise.consistency, sink, limit),
        };
        let released = capture.release();
        let drained = outcome?;
        released?;
        let run_state = if drained.consistency == Consistency::Application {
            "shutdown".into()
        } else if self.report.pause_ms.is_some() {
            "running".into()
        } else {
            machine.run_state.clone()
        };
        Ok(Captured {
            drained,
            run_state,
            time,
        })
    }

    /// Takes everything out of the guest: the memory stream, then the disks.
    fn drain(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        consistency: Consistency,
        sink: &Sink<'_>,
        limit: Duration,
    ) -> Result<Drained> {
        let cancelled = || self.cx.cancel.is_set();
        let begun = Instant::now();
        failpoint::pass("memory stream")?;
        let spinner = self.cx.ui.spinner("memory into the spool");
        let memory = capture.finish_memory(limit, &cancelled)?;
        spinner.finish_and_clear();
        self.report.seconds.memory = begun.elapsed().as_secs_f64();
        Ok(Drained {
            memory,
            disks: self.store_disks(capture, machine, sink)?,
            consistency,
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
}

/// The means of a capture of disks into the work folder `dir`.
pub(crate) fn capture_options(
    cx: &Cx<'_>,
    machine: &Machine,
    args: &CaptureArgs,
    tag: String,
    dir: PathBuf,
) -> Result<CaptureOptions> {
    let mut spool = SpoolOptions::new(cx.home.spool_dir()?);
    spool.memory_limit_bytes = args.spool_memory_mib << 20;
    spool.deadline = Duration::from_secs(args.memory_deadline_s);
    // The preparation sends nothing while it touches every page.
    spool.stall = Duration::from_secs(60);
    let gib = u32::try_from(machine.memory_bytes >> 30)
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    Ok(CaptureOptions {
        memory: false,
        bitmaps: Vec::new(),
        outside: false,
        tag,
        dir,
        guard: GuardCommand::of_this_program("pause-guard"),
        pause_deadline: Duration::from_millis(args.pause_deadline_ms),
        preparation_limit: PREPARATION_PER_GIB.saturating_mul(gib),
        spool,
        collapse_limit: Duration::from_secs(args.collapse_limit_s),
    })
}

/// Puts this thread, and those that store images for it, behind the host's guests. Only where it
/// can be raised again for the next pause.
fn step_back() {
    if rustix::process::geteuid().is_root() {
        let _ = rustix::process::setpriority_process(None, STORE_NICE);
    }
}

fn memory_can_be_had(machine: &Machine) -> Result<()> {
    match machine.memory_blockers.as_slice() {
        [] => Ok(()),
        reasons => bail!(
            "the guest's memory cannot be captured: {}",
            reasons.join("; ")
        ),
    }
}

/// Eight characters that tell a job's nodes and work folder apart.
pub(crate) fn job_tag(job: &JobId) -> String {
    let digits = job.as_str().chars().filter(|c| *c != '-');
    digits.take(8).collect()
}

pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))
}

/// Recovers first, then backs up.
pub(crate) fn recover_and_run(cx: &Cx<'_>, args: &BackupArgs) -> Result<Vec<BackupReport>> {
    let here = Here::of(cx.home, cx.db)?;
    for name in &args.vms {
        let vm = cx.db.run(async |c| c.vm_by_name(name).await)?;
        here.refuse_elsewhere(&vm, "backup")?;
    }
    recover::dead_jobs(cx)?;
    run(cx, args)
}
