//! Capture: one instant of a guest, its memory and all its disks, for a pause of milliseconds.
//!
//! ```text
//!  inspected ─► scratch, filters ─► memory settings ─► guard ─► [ pause ─ duplicate memory ─
//!      switch disks ─ resume ] ─► exports ─► (read at leisure) ─► release
//! ```
//! Order is what makes it safe:
//! - Every undo is registered with the [`Journal`] *before* the thing is done; [`Capture::release`]
//!   applies them in reverse, and so does recovery after a crash, from the same values.
//! - Everything slow (scratch images, nodes, huge pages, the guard) comes before the pause, and
//!   nothing in the pause touches a repository, a network or a catalog.
//! - The guest is resumed only if it was running when we came.
//!
//! Knows nothing of where the data goes.

mod dirty;
mod disks;
mod error;
mod hold;
mod journal;
mod memory;
mod outlive;
mod point;
pub(crate) mod priority;
mod relayed;
mod storage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::collapse::collapse_guest_memory;
use crate::guard::Guard;
use crate::inspect::run_state;
use crate::machine::Machine;
use crate::process::user_and_group;
use crate::qmp::{Command, Event, Qmp, QmpError};
use crate::spool::{SpoolData, SpoolError, SpoolReader};
use crate::undo::{GuestRef, Undo, cancel_migration};
use disks::View;
pub use error::CaptureError;
use hold::{Births, Outcome, Watch};
pub use journal::{Journal, JournalError};
use memory::{Settings, Stream};
pub use outlive::PointImage;
pub use point::{CaptureOptions, PauseMethod, Point};
use priority::Urgent;
use storage::Storage;

/// How often a missed boundary is tried again before the guest is stopped first.
const HOLD_TRIES: u32 = 6;
/// How often a point that was not one instant is taken again, from the beginning.
const INSTANT_TRIES: u32 = 3;
/// Longest wait for the first page once the guest is stopped.
const FIRST_PAGE_LIMIT: Duration = Duration::from_secs(60);

/// A captured instant. Disks are readable over NBD, memory fills the spool, the guest runs.
pub struct Capture<'j> {
    qmp: Qmp,
    journal: &'j mut dyn Journal,
    undos: Vec<(u64, Undo)>,
    guest: GuestRef,
    views: Vec<View>,
    stream: Option<Stream>,
    storage: Option<Storage>,
    point: Point,
    socket: PathBuf,
    /// Disks whose exports tell what was written since an earlier point.
    dirty: Vec<String>,
}

impl std::fmt::Debug for Capture<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("point", &self.point)
            .finish_non_exhaustive()
    }
}

impl<'j> Capture<'j> {
    /// Captures the guest behind `qmp`, which was inspected as `machine`.
    ///
    /// # Errors
    /// See [`CaptureError`]; whatever was done to the guest has been undone.
    pub fn begin(
        qmp: Qmp,
        machine: &Machine,
        options: &CaptureOptions,
        journal: &'j mut dyn Journal,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Capture<'j>, CaptureError> {
        let guest = guest_ref(&qmp)?;
        let disks = machine.disks.iter().filter(|d| d.included);
        let views = disks
            .enumerate()
            .map(|(n, d)| View::new(d, &options.tag, n, &options.dir))
            .collect();
        let mut capture = Capture {
            qmp,
            journal,
            undos: Vec::new(),
            guest,
            views,
            stream: None,
            storage: None,
            point: Point::default(),
            socket: nbd_socket(&options.dir),
            dirty: Vec::new(),
        };
        let mut tries_left = INSTANT_TRIES;
        loop {
            let Err(error) = capture.run(options, cancelled) else {
                return Ok(capture);
            };
            capture.undo_all()?;
            tries_left -= 1;
            if tries_left == 0 || !matches!(error, CaptureError::NotOneInstant { .. }) {
                return Err(error);
            }
            tracing::info!(%error, "taking the point again");
        }
    }

    fn run(
        &mut self,
        options: &CaptureOptions,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), CaptureError> {
        self.point = Point::default();
        let owner = user_and_group(self.guest.process.pid).unwrap_or((0, 0));
        // Through a relay QEMU gets open files, and all else stays ours.
        let owner = (!self.qmp.is_relayed()).then_some(owner);
        if let Some(owner) = owner {
            disks::give_to(&options.dir, owner)?;
        }
        self.prepare_disks(options, owner)?;
        if options.memory {
            self.prepare_memory(options, cancelled)?;
        }
        if cancelled() {
            return Err(CaptureError::Cancelled);
        }
        self.take_point(options)?;
        self.freeze_bitmaps(&options.bitmaps)?;
        self.export()
    }

    /// Registers, then does.
    fn step<T>(
        &mut self,
        name: &str,
        undo: Undo,
        act: impl FnOnce(&mut Self) -> Result<T, CaptureError>,
    ) -> Result<T, CaptureError> {
        let wrap = |source| CaptureError::Journal {
            step: name.to_owned(),
            source,
        };
        let token = self.journal.register(name, &undo).map_err(wrap)?;
        self.undos.push((token, undo));
        self.journal.step(name).map_err(wrap)?;
        act(self)
    }

    fn prepare_disks(
        &mut self,
        options: &CaptureOptions,
        owner: Option<(u32, u32)>,
    ) -> Result<(), CaptureError> {
        for view in self.views.clone() {
            let file = Undo::DeletePath {
                path: view.scratch_path.clone(),
            };
            self.step(&format!("scratch {}", view.disk.id), file, |_| {
                view.create_scratch(owner)
            })?;
        }
        let socket = options.outside.then(|| storage::socket(&options.dir));
        if let Some(socket) = &socket {
            self.start_storage(&options.dir, socket, owner)?;
        } else if self.qmp.is_relayed() {
            self.hand_over_scratch()?;
        }
        for view in self.views.clone() {
            let undo = Undo::Disk {
                guest: self.guest.clone(),
                qdev: view.disk.qdev.clone(),
                access_node: view.access.clone(),
                filter_node: view.filter.clone(),
                scratch_node: view.scratch.clone(),
            };
            self.step(&format!("filter {}", view.disk.id), undo, |c| {
                view.add_nodes(&mut c.qmp, socket.as_deref())
            })?;
        }
        Ok(())
    }

    fn prepare_memory(
        &mut self,
        options: &CaptureOptions,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), CaptureError> {
        let settings = Settings::read(&mut self.qmp)?;
        let undo = Undo::Migration {
            guest: self.guest.clone(),
            capabilities: settings.before.clone(),
            max_bandwidth: settings.max_bandwidth,
        };
        self.step("memory settings", undo, |c| settings.apply(&mut c.qmp))?;
        tracing::debug!("huge pages");
        self.point.collapse =
            collapse_guest_memory(self.guest.process.pid, options.collapse_limit, cancelled);
        Ok(())
    }

    /// The point itself: from here to the resume nothing may wait for anything but QEMU.
    fn take_point(&mut self, options: &CaptureOptions) -> Result<(), CaptureError> {
        let state = run_state(&mut self.qmp)?;
        match state.as_str() {
            "running" => {
                let undo = Undo::Resume {
                    guest: self.guest.clone(),
                };
                let wrap = |source| CaptureError::Journal {
                    step: "pause".into(),
                    source,
                };
                let token = self.journal.register("pause", &undo).map_err(wrap)?;
                self.undos.push((token, undo));
                let guard = Guard::start(&options.guard, self.qmp.as_fd())?;
                let urgent = Urgent::begin();
                let outcome = self
                    .journal
                    .step("pause")
                    .map_err(wrap)
                    .and_then(|()| self.pause_and_switch(options, &guard));
                // Make sure it runs before the guard is let go, whatever happened.
                let resumed = self.undo_last();
                drop(urgent);
                let released = guard.release();
                outcome?;
                resumed?;
                released?;
                self.journal
                    .step("resumed")
                    .map_err(|source| CaptureError::Journal {
                        step: "resumed".into(),
                        source,
                    })
            }
            "paused" | "prelaunch" | "shutdown" | "suspended" | "io-error" | "guest-panicked"
            | "watchdog" | "debug" | "postmigrate" | "internal-error" => {
                self.switch_not_running(options)
            }
            _ => Err(CaptureError::State { state }),
        }
    }

    fn pause_and_switch(
        &mut self,
        options: &CaptureOptions,
        guard: &Guard,
    ) -> Result<(), CaptureError> {
        self.qmp.take_events()?;
        if !options.memory {
            guard.arm(options.pause_deadline)?;
            return self.disks_only();
        }
        let arm = || guard.arm(options.pause_deadline);
        while self.point.missed < HOLD_TRIES {
            if self.at_boundary(options, &arm)? {
                return Ok(());
            }
        }
        guard.arm(options.pause_deadline + options.preparation_limit)?;
        self.stop_first(options)
    }

    /// Disks alone: all in one write, so that the guest's pause is QEMU's work and nothing else.
    fn disks_only(&mut self) -> Result<(), CaptureError> {
        let mut commands = vec![Command::new("stop", Value::Null)];
        commands.extend(self.views.iter().map(View::switch));
        commands.push(Command::new("cont", Value::Null));
        self.point.method = PauseMethod::DisksOnly;
        self.execute_all(&commands)?;
        self.measure_pause()
    }

    /// One try at the boundary; `false` when it was missed and all is as before.
    fn at_boundary(
        &mut self,
        options: &CaptureOptions,
        arm: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<bool, CaptureError> {
        let stream = memory::open_stream(&mut self.qmp, options.spool.clone())?;
        let mut commands = vec![Command::new("stop", Value::Null)];
        commands.extend(self.views.iter().map(View::switch));
        let pid = self.guest.process.pid;
        let births = Births::watch(pid);
        tracing::debug!("migrate");
        let migrate = self.qmp.send(&[migrate_command()])?;
        let outcome = {
            let received = || stream.spool.received_bytes();
            let watch = Watch {
                pid,
                births,
                stream_inode: stream.inode,
                arm,
                received: &received,
            };
            watch.switch_at_boundary(&mut self.qmp, &commands)?
        };
        match outcome {
            Outcome::Switched(replies) => {
                self.stream = Some(stream);
                for reply in replies {
                    reply?;
                }
                self.accept(&migrate)?;
                self.point.method = PauseMethod::Boundary;
                self.resume_and_measure()?;
                Ok(true)
            }
            Outcome::Missed => {
                self.point.missed += 1;
                self.give_up_stream(stream, &migrate)?;
                Ok(false)
            }
            Outcome::Late(pending) => {
                self.point.missed += 1;
                for one in &pending {
                    self.qmp.reply(one, Duration::from_secs(30))?;
                }
                self.give_up_stream(stream, &migrate)?;
                self.qmp.execute("cont", Value::Null)?;
                Err(CaptureError::NotOneInstant {
                    reason: "QEMU went on before the disks were switched".into(),
                })
            }
            Outcome::NotPermitted => {
                self.point.missed = HOLD_TRIES;
                self.give_up_stream(stream, &migrate)?;
                Ok(false)
            }
        }
    }

    fn accept(&mut self, migrate: &[crate::qmp::Pending]) -> Result<(), CaptureError> {
        for one in migrate {
            self.qmp
                .reply(one, Duration::from_secs(30))
                .map_err(|source| CaptureError::MemoryRefused { source })?;
        }
        Ok(())
    }

    /// Ends a snapshot that was begun in vain, draining it until QEMU has let go of it.
    fn give_up_stream(
        &mut self,
        stream: Stream,
        migrate: &[crate::qmp::Pending],
    ) -> Result<(), CaptureError> {
        self.accept(migrate)?;
        cancel_migration(&mut self.qmp)?;
        stream.spool.give_up("the boundary was missed");
        self.qmp.take_events()?;
        Ok(())
    }

    /// Without tracing: the guest stands still during the snapshot's preparation too.
    fn stop_first(&mut self, options: &CaptureOptions) -> Result<(), CaptureError> {
        self.point.method = PauseMethod::StopFirst;
        self.point.warnings.push(
            "the guest was paused longer, in proportion to its memory: vmtwin could not hold \
             QEMU's snapshot thread (needs ptrace permission: run as root)"
                .into(),
        );
        let stream = memory::open_stream(&mut self.qmp, options.spool.clone())?;
        self.stream = Some(stream);
        let mut commands = vec![Command::new("stop", Value::Null)];
        commands.extend(self.views.iter().map(View::switch));
        commands.push(migrate_command());
        self.execute_all(&commands)?;
        self.resume_and_measure()
    }

    /// A guest that does not run: no pause, no resume, no guard.
    fn switch_not_running(&mut self, options: &CaptureOptions) -> Result<(), CaptureError> {
        let mut commands: Vec<Command> = self.views.iter().map(View::switch).collect();
        if options.memory {
            let stream = memory::open_stream(&mut self.qmp, options.spool.clone())?;
            self.stream = Some(stream);
            commands.push(migrate_command());
        }
        self.point.time_us = now_us();
        self.execute_all(&commands)
    }

    fn execute_all(&mut self, commands: &[Command]) -> Result<(), CaptureError> {
        let pending = self.qmp.send(commands)?;
        let mut first_error = None;
        for one in &pending {
            if let Err(error) = self.qmp.reply(one, Duration::from_secs(30)) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), |e| Err(e.into()))
    }

    fn resume_and_measure(&mut self) -> Result<(), CaptureError> {
        memory::wait_for_first_page(&mut self.qmp, FIRST_PAGE_LIMIT)?;
        self.qmp.execute("cont", Value::Null)?;
        tracing::debug!("resumed");
        self.measure_pause()
    }

    /// Exactly one STOP and then one RESUME, or it was not one instant.
    fn measure_pause(&mut self) -> Result<(), CaptureError> {
        let mut seen: Vec<Event> = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && !seen.iter().any(|e| e.name == "RESUME") {
            seen.extend(
                self.qmp
                    .take_events()?
                    .into_iter()
                    .filter(|e| e.name == "STOP" || e.name == "RESUME"),
            );
            if !seen.iter().any(|e| e.name == "RESUME") {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let names: Vec<&str> = seen.iter().map(|e| e.name.as_str()).collect();
        if names != ["STOP", "RESUME"] {
            return Err(CaptureError::NotOneInstant {
                reason: format!("events {names:?}"),
            });
        }
        self.point.time_us = seen[0].time_us;
        #[allow(clippy::cast_precision_loss)] // a pause of 2^53 µs is 285 years
        let pause_ms = seen[1].time_us.saturating_sub(seen[0].time_us) as f64 / 1000.0;
        self.point.pause_ms = Some(pause_ms);
        Ok(())
    }

    fn export(&mut self) -> Result<(), CaptureError> {
        if self.views.is_empty() {
            return Ok(());
        }
        let undo = Undo::NbdServer {
            guest: self.guest.clone(),
            exports: self.views.iter().map(View::export_id).collect(),
        };
        let socket = self.socket.clone();
        self.step("exports", undo, |c| {
            disks::start_nbd_server(&mut c.qmp, &socket)?;
            for view in c.views.clone() {
                let dirty = c.dirty.contains(&view.disk.id);
                view.export(&mut c.qmp, dirty)?;
            }
            Ok(())
        })
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &GuestRef {
        &self.guest
    }

    /// What is known of the point.
    #[must_use]
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// The unix socket on which every captured disk is exported under its id.
    #[must_use]
    pub fn nbd_socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the end of the memory stream; `None` where memory was not captured.
    ///
    /// # Errors
    /// The snapshot failed, the spool gave up, or `cancelled` said so.
    pub fn finish_memory(
        &mut self,
        limit: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<SpoolData>, CaptureError> {
        let Some(stream) = self.stream.take() else {
            return Ok(None);
        };
        let outcome = memory::wait_for_end(&mut self.qmp, limit, cancelled);
        tracing::debug!("end of memory");
        if let Err(error) = outcome {
            stream.spool.give_up("the capture failed");
            // The spool's own reason, if it had one, says more than QEMU's broken pipe.
            return match stream.spool.finish() {
                Err(spool) if !matches!(spool, SpoolError::GivenUp { .. }) => Err(spool.into()),
                _ => Err(error),
            };
        }
        Ok(Some(stream.spool.finish()?))
    }

    /// Hands the memory stream over to a reader that takes it while it comes in; `None` where
    /// memory was not captured. [`Capture::wait_for_memory`] says whether it is whole.
    pub fn follow_memory(&mut self) -> Option<SpoolReader> {
        Some(self.stream.take()?.spool.follow())
    }

    /// Waits until QEMU has sent all of memory.
    ///
    /// # Errors
    /// The snapshot failed, the time is over, or `cancelled` said so.
    pub fn wait_for_memory(
        &mut self,
        limit: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), CaptureError> {
        memory::wait_for_end(&mut self.qmp, limit, cancelled)
    }

    /// The connection, for looking at the guest while the capture lasts.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Undoes everything in reverse. The awaited end of a capture.
    ///
    /// # Errors
    /// The first undo that failed; the others have been tried, and it stays in the journal.
    pub fn release(mut self) -> Result<(), CaptureError> {
        self.undo_all()
    }

    fn undo_all(&mut self) -> Result<(), CaptureError> {
        if let Some(stream) = self.stream.take() {
            stream.spool.give_up("the capture ended");
        }
        let mut first_error = None;
        while !self.undos.is_empty() {
            if let Err(error) = self.undo_last() {
                first_error.get_or_insert(error);
            }
        }
        self.storage = None;
        first_error.map_or(Ok(()), Err)
    }

    fn undo_last(&mut self) -> Result<(), CaptureError> {
        let Some((token, undo)) = self.undos.pop() else {
            return Ok(());
        };
        undo.apply_with(Some(&mut self.qmp))?;
        self.journal
            .undone(token)
            .map_err(|source| CaptureError::Journal {
                step: undo.describe(),
                source,
            })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.undos.is_empty() {
            return;
        }
        if let Err(error) = self.undo_all() {
            tracing::error!(error = %error, "could not undo all of a capture; run: vmtwin recover");
        }
    }
}

/// The unix socket on which a capture with its work folder `dir` exports its disks.
#[must_use]
pub fn nbd_socket(dir: &Path) -> PathBuf {
    dir.join("nbd.sock")
}

fn guest_ref(qmp: &Qmp) -> Result<GuestRef, CaptureError> {
    let gone = || QmpError::Gone {
        path: qmp.path().to_owned(),
    };
    Ok(GuestRef::of(qmp).ok_or_else(gone)?)
}

fn migrate_command() -> Command {
    let uri = format!("fd:{}", memory::FD_NAME);
    Command::new("migrate", serde_json::json!({ "uri": uri }))
}

fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}
