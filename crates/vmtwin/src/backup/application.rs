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
use vmtwin_hypervisor::twin::{Backing, Twin, TwinPlan, TwinRequest, check_room};

use super::disks::{Sink, connect_to_point};
use super::report::TwinReport;
use super::{Cx, Drained, Work, job_tag, store};
use crate::cli::{Consistency, Fallback};
use crate::content::ContentDisk;
use crate::failpoint;
use crate::journal::JobJournal;
use crate::source::Changes;
use crate::twin_args::TwinArgs;
use crate::twin_row::TwinRow;
use crate::twin_slot::TwinSlot;

/// How long a twin may take from the last byte of its state until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(5);
/// Piece of the stream that is handed on at once, bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A twin that may be made.
pub(super) struct PlannedTwin {
    pub(super) plan: TwinPlan,
    ending: TwinArgs,
    _slot: TwinSlot,
}

impl Work<'_> {
    /// Plans the twin, before the guest is touched: what can't be had twice shows here.
    pub(super) fn plan_twin(&self, machine: &Machine) -> Result<PlannedTwin> {
        let slot = TwinSlot::take(self.cx)?;
        check_room(machine.pid, self.args.capture.spool_memory_mib << 20)?;
        let tag = job_tag(self.job);
        let dir = self.work_dir(&tag)?;
        let socket = nbd_socket(&dir);
        let request = TwinRequest {
            dir,
            name: format!("{}-twin-{tag}", self.vm.name),
            standby: false,
        };
        let plan = TwinPlan::new(machine, &request, |id| Backing::Nbd {
            socket: socket.clone(),
            export: id.to_owned(),
        })?;
        Ok(PlannedTwin {
            plan,
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
            .and_then(|()| self.store_finished(capture, machine, &twin.plan, sink));
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
    ) -> Result<()> {
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let begun = Instant::now();
        let outcome = journal.within(&twin.plan.undos(), |journal| {
            journal.step("twin").map_err(anyhow::Error::from_boxed)?;
            self.lived(capture, machine, twin, limit)
        });
        self.report.seconds.twin = begun.elapsed().as_secs_f64();
        outcome
    }

    /// The life of the twin.
    fn lived(
        &mut self,
        capture: &mut Capture<'_>,
        machine: &Machine,
        planned: &PlannedTwin,
        limit: Duration,
    ) -> Result<()> {
        let plan = &planned.plan;
        let cancelled = || self.cx.cancel.is_set();
        let begun = Instant::now();
        let row = TwinRow::add(self.cx.db, self.vm, machine, plan)?;
        let spinner = self.cx.ui.spinner("memory into the twin");
        let (mut twin, socket) = plan.start()?;
        failpoint::pass("twin state")?;
        feed(capture, &mut twin, socket, limit, &cancelled)?;
        twin.wait_ready(READY_TIMEOUT, &cancelled)?;
        spinner.finish_and_clear();
        let load_s = begun.elapsed().as_secs_f64();
        row.runs()?;
        self.report.twin = Some(end_twin(self.cx, twin, &planned.ending, load_s)?);
        Ok(())
    }

    /// Stores what the twin left. It may differ from an earlier snapshot where the guest wrote since,
    /// where this twin wrote, and where that of the earlier one did.
    fn store_finished(
        &mut self,
        capture: &Capture<'_>,
        machine: &Machine,
        plan: &TwinPlan,
        sink: &Sink<'_>,
    ) -> Result<Vec<ContentDisk>> {
        let begun = Instant::now();
        let mut disks = Vec::new();
        for overlay in plan.overlays() {
            let (id, image) = (&overlay.disk_id, (overlay.path.as_path(), "qcow2"));
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
        load_s,
        run_s: ended.seconds,
        presses: ended.presses,
        agent: ended.agent,
    })
}

/// Hands the memory stream to the twin while it comes in. A twin that is slow or hangs never holds
/// the guest, since the spool lies in between.
pub(crate) fn feed(
    capture: &mut Capture<'_>,
    twin: &mut Twin,
    socket: UnixStream,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    let reader = capture.follow_memory().context("no memory was captured")?;
    let spool = reader.handle();
    let begun = Instant::now();
    let feeder = thread::spawn(move || hand_on(reader, socket));
    let captured = capture.wait_for_memory(limit, cancelled);
    if captured.is_err() {
        spool.give_up("the capture failed");
    }
    while !feeder.is_finished() {
        if cancelled() || begun.elapsed() > limit {
            twin.kill()?;
        }
        thread::sleep(POLL);
    }
    let fed = feeder.join().map_err(|_| anyhow!("the feeder panicked"))?;
    if cancelled() {
        return Err(CaptureError::Cancelled.into());
    }
    // A twin that ended says more than a broken pipe or the capture that broke with it.
    twin.check()?;
    captured?;
    fed.context("the twin did not take its memory")
}

fn hand_on(mut reader: SpoolReader, mut socket: UnixStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(()),
            count => socket.write_all(&piece[..count])?,
        }
    }
}
