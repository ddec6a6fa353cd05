//! Application-consistent disks: memory goes straight into a twin, which its own operating system
//! shuts down; what is stored is the disks it leaves.
//!
//! ```text
//!   capture ─► spool ─► twin (overlays on the point's exports) ─► power button ─► powered off
//!                                                                    └─► overlays ─► repository
//! ```
//! The guest runs on meanwhile. What a twin leaves is never called application-consistent unless it
//! powered off by itself, in time, and without an error of its disks.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use vmtwin_hypervisor::capture::{Capture, CaptureError, Journal, nbd_socket};
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_hypervisor::spool::SpoolReader;
use vmtwin_hypervisor::twin::{Backing, Overlay, Twin, TwinPlan, TwinRequest, check_room};
use vmtwin_hypervisor::undo::Undo;

use super::disks::{Sink, connect_to_point};
use super::report::TwinReport;
use super::{Cx, Drained, Work, job_tag, store};
use crate::cli::{Consistency, Fallback};
use crate::content::ContentDisk;
use crate::failpoint;
use crate::journal::JobJournal;
use crate::libvirt::Definitions;
use crate::libvirt::twin::{DomainTwin, TwinGuard};
use crate::source::Changes;
use crate::twin_args::TwinArgs;
use crate::twin_row::{Described, TwinRow};
use crate::twin_slot::TwinSlot;

/// How long a twin may take from the last byte of its state until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);
/// Piece of the stream that is handed on at once, bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A twin that may be made.
pub(super) struct PlannedTwin {
    plan: TwinPlan,
    /// As a domain of libvirt, where it can be one; else why not.
    domain: Result<DomainTwin>,
    ending: TwinArgs,
    _slot: TwinSlot,
}

impl PlannedTwin {
    /// For the table.
    fn described(&self) -> Described<'_> {
        match &self.domain {
            Ok(domain) => Described {
                id: Some(domain.uuid()),
                name: self.plan.name(),
                connection: domain.connection(),
                overlays: domain.overlays(),
            },
            Err(_) => Described::of(&self.plan),
        }
    }

    fn undos(&self) -> Vec<(&'static str, Undo)> {
        let mut undos = self.plan.undos();
        undos.extend(self.domain.iter().map(|twin| ("twin domain", twin.undo())));
        undos
    }
}

/// A twin that is paused, with its memory in.
struct LoadedTwin {
    twin: Twin,
    /// Of a domain.
    guard: Option<TwinGuard>,
    overlays: Vec<Overlay>,
}

impl Work<'_> {
    /// Plans the twin, before the guest is touched: what can't be had twice shows here.
    pub(super) fn plan_twin(&self, machine: &Machine) -> Result<PlannedTwin> {
        let slot = TwinSlot::take(self.cx)?;
        check_room(machine.pid, self.args.capture.spool_memory_mib << 20)?;
        let tag = job_tag(self.job);
        let dir = self.work_dir(&tag)?;
        let socket = nbd_socket(&dir);
        let backing = |id: &str| Backing::Nbd {
            socket: socket.clone(),
            export: id.to_owned(),
        };
        let request = TwinRequest {
            dir,
            name: format!("{}-twin-{tag}", self.vm.name),
            standby: false,
        };
        let domain = match &self.definitions {
            Some(Definitions { running, .. }) => {
                let (name, dir) = (&request.name, &request.dir);
                DomainTwin::plan(self.vm, machine, running, name, dir, backing)
            }
            None => Err(anyhow!("its guest is no domain of libvirt")),
        };
        Ok(PlannedTwin {
            plan: TwinPlan::new(machine, &request, backing)?,
            domain,
            ending: self.args.twin.over(self.vm)?,
            _slot: slot,
        })
    }

    /// Stores the disks that a twin of the point leaves; where that fails and the user allowed it,
    /// the disks of the point itself.
    pub(super) fn through_twin(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        twin: &PlannedTwin,
        sink: &Sink<'_>,
        limit: Duration,
    ) -> Result<Drained> {
        let finished = self
            .run_twin(capture, machine, twin, limit)
            .and_then(|overlays| self.store_finished(capture, machine, &overlays, sink));
        match finished {
            Ok(disks) => Ok(Drained {
                memory: None,
                disks,
                consistency: Consistency::Application,
            }),
            Err(error) if self.args.or == Some(Fallback::Crash) && !self.cx.cancel.is_set() => {
                self.warn(format!("stored as crash-consistent: {error:#}"));
                Ok(Drained {
                    memory: None,
                    disks: self.store_disks(capture, machine, sink)?,
                    consistency: Consistency::Crash,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// From the start of the twin until its QEMU has ended.
    fn run_twin(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        twin: &PlannedTwin,
        limit: Duration,
    ) -> Result<Vec<Overlay>> {
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let begun = Instant::now();
        let outcome = journal.within(&twin.undos(), |journal| {
            journal.step("twin").map_err(anyhow::Error::from_boxed)?;
            self.lived(capture, machine, twin, limit)
        });
        self.report.seconds.twin = begun.elapsed().as_secs_f64();
        outcome
    }

    /// The life of the twin; gives what it leaves.
    fn lived(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        planned: &PlannedTwin,
        limit: Duration,
    ) -> Result<Vec<Overlay>> {
        let begun = Instant::now();
        let row = TwinRow::add(self.cx.db, self.vm, machine, &planned.described())?;
        let spinner = self.cx.ui.spinner("memory into the twin");
        let loaded = self.load_twin(capture, planned, limit)?;
        spinner.finish_and_clear();
        let load_s = begun.elapsed().as_secs_f64();
        row.runs()?;
        let mut report = end_twin(self.cx, loaded.twin, &planned.ending, load_s)?;
        report.domain = loaded.guard.is_some();
        self.report.twin = Some(report);
        if let Some(guard) = loaded.guard {
            guard.release()?;
        }
        Ok(loaded.overlays)
    }

    /// As a domain of libvirt, where that is possible; else as a QEMU of ours.
    fn load_twin(
        &self,
        capture: &mut Capture<'_>,
        planned: &PlannedTwin,
        limit: Duration,
    ) -> Result<LoadedTwin> {
        let cancelled = || self.cx.cancel.is_set();
        let reason = match &planned.domain {
            Ok(domain) => match load_domain(capture, domain, limit, &cancelled)? {
                Ok(loaded) => return Ok(loaded),
                Err(refused) => refused,
            },
            Err(reason) => anyhow!("{reason:#}"),
        };
        if self.definitions.is_some() {
            let text = "the twin is a process beside libvirt, not a domain";
            self.cx
                .ui
                .note(&format!("{}: {text}: {reason:#}", self.vm.name));
        }
        let (mut twin, socket) = planned.plan.start()?;
        failpoint::pass("twin state")?;
        feed(capture, &mut twin, socket, limit, &cancelled)?;
        twin.wait_ready(READY_TIMEOUT, &cancelled)?;
        Ok(LoadedTwin {
            twin,
            guard: None,
            overlays: planned.plan.overlays().to_vec(),
        })
    }

    /// Stores what the twin left. It may differ from an earlier snapshot where the guest wrote since,
    /// where this twin wrote, and where that of the earlier one did.
    fn store_finished(
        &mut self,
        capture: &Capture<'_>,
        machine: &Machine,
        overlays: &[Overlay],
        sink: &Sink<'_>,
    ) -> Result<Vec<ContentDisk>> {
        let begun = Instant::now();
        let mut disks = Vec::new();
        for overlay in overlays {
            let (id, image) = (&overlay.disk_id, (overlay.path.as_path(), overlay.format));
            let mut read = None;
            let against = |disk: &Disk, written: &Changes| {
                let point = connect_to_point(capture, disk)?;
                let (mut against, why_all) = sink.against(capture, disk, &point);
                if let Some(changes) = &mut against.changes {
                    for (offset, length) in written.stretches() {
                        changes.add(offset, length);
                    }
                }
                read = Some(why_all);
                Ok(against)
            };
            let backup = sink.backup;
            let stored =
                store::finished(self.cx, backup, machine, id, image, against, self.report)?;
            self.note_reading(id, read.flatten());
            disks.push(stored);
        }
        self.report.seconds.disks = begun.elapsed().as_secs_f64();
        Ok(disks)
    }
}

/// Lets a twin run until its own operating system has ended it.
pub(crate) fn end_twin(
    cx: &Cx<'_>,
    mut twin: Twin,
    args: &TwinArgs,
    load_s: f64,
) -> Result<TwinReport> {
    failpoint::pass("twin resume")?;
    let spinner = cx.ui.spinner("the twin shuts down");
    twin.resume()?;
    let ended = twin.shut_down(&args.options(), &|| cx.cancel.is_set())?;
    failpoint::pass("twin end")?;
    twin.quit()?;
    spinner.finish_and_clear();
    Ok(TwinReport {
        domain: false,
        load_s,
        run_s: ended.seconds,
        presses: ended.presses,
        agent: ended.agent,
    })
}

/// Has libvirt load a twin. The inner error is libvirt's refusal before it took any memory: another
/// twin can have it then.
fn load_domain(
    capture: &mut Capture<'_>,
    domain: &DomainTwin,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<Result<LoadedTwin>> {
    let mut taken = false;
    let socket = capture.nbd_socket().to_owned();
    let loaded = domain.load(&[&socket], cancelled, |out| {
        taken = true;
        failpoint::pass("twin state")?;
        pour(capture, out, limit, cancelled, &mut || {
            Ok(domain.undo().apply()?)
        })?
        .end()
    });
    match loaded {
        Ok((twin, guard)) => Ok(Ok(LoadedTwin {
            twin,
            guard: Some(guard),
            overlays: domain.overlays().to_vec(),
        })),
        Err(_) if cancelled() => Err(CaptureError::Cancelled.into()),
        Err(error) if taken => Err(error),
        Err(refused) => Ok(Err(refused)),
    }
}

/// Hands the memory stream to the twin while it comes in.
pub(crate) fn feed(
    capture: &mut Capture<'_>,
    twin: &mut Twin,
    socket: UnixStream,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    let poured = pour(capture, socket, limit, cancelled, &mut || Ok(twin.kill()?))?;
    // A twin that ended says more than a broken pipe or the capture that broke with it.
    twin.check()?;
    poured.end()
}

/// How a stream was handed on.
struct Poured {
    captured: Result<(), CaptureError>,
    fed: io::Result<()>,
}

impl Poured {
    fn end(self) -> Result<()> {
        self.captured?;
        self.fed.context("the twin did not take its memory")
    }
}

/// Hands the memory stream on while it comes in. A twin that is slow or hangs never holds the guest,
/// since the spool lies in between; one that takes too long is killed.
fn pour(
    capture: &mut Capture<'_>,
    out: impl Write + Send + 'static,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
    kill: &mut dyn FnMut() -> Result<()>,
) -> Result<Poured> {
    let reader = capture.follow_memory().context("no memory was captured")?;
    let spool = reader.handle();
    let begun = Instant::now();
    let feeder = thread::spawn(move || hand_on(reader, out));
    let captured = capture.wait_for_memory(limit, cancelled);
    if captured.is_err() {
        spool.give_up("the capture failed");
    }
    while !feeder.is_finished() {
        if cancelled() || begun.elapsed() > limit {
            kill()?;
        }
        thread::sleep(POLL);
    }
    let fed = feeder.join().map_err(|_| anyhow!("the feeder panicked"))?;
    match cancelled() {
        true => Err(CaptureError::Cancelled.into()),
        false => Ok(Poured { captured, fed }),
    }
}

fn hand_on(mut reader: SpoolReader, mut out: impl Write) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(()),
            count => out.write_all(&piece[..count])?,
        }
    }
}
