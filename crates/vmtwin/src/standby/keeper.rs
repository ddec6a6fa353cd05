//! The keeper of one standby: makes it, watches its guest, and promotes or removes it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{Connection, ConnectionKind, JobId, JobKind, NewJob, Vm};
use vmtwin_hypervisor::capture::{Capture, CaptureOptions, Journal};
use vmtwin_hypervisor::inspect::inspect;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::process::without_our_settings;
use vmtwin_hypervisor::qmp::Qmp;
use vmtwin_hypervisor::twin::{Backing, Join, Twin, TwinPlan, TwinRequest, check_room, joins};
use vmtwin_hypervisor::undo::Undo;

use super::Status;
use super::control::{Listener, Request};
use super::watch::{Guest, Watch, disk_usage};
use crate::backup::application::feed;
use crate::backup::{
    BackupReport, CONNECT_TIMEOUT, Cx, capture_options, end_job, job_tag, make_dir, update_table,
};
use crate::cli::TwinStartArgs;
use crate::cluster::place::Here;
use crate::failpoint;
use crate::journal::JobJournal;
use crate::libvirt::{monitor_of, refuse_while_busy};
use crate::twin_row::{Described, TwinRow};

/// How long a twin may take from the last byte of its state until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest that is killed may take to vanish.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take from the end of its connections to its own.
const DYING_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a fencing command may take.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const STILL_RUNS: &str = "the guest still runs, and would be killed by a promotion; say --force if \
                          that is what you want";

/// Keeps a standby until it is promoted or removed.
pub(super) fn run(cx: &Cx<'_>, args: &TwinStartArgs, name: &str, dir: &Path) -> Result<()> {
    let vm = cx.db.run(async |c| c.vm_by_name(&args.vm).await)?;
    Here::of(cx.home, cx.db)?.refuse_elsewhere(&vm, "twin start")?;
    let mut qmp = Qmp::connect(&monitor_of(&vm), CONNECT_TIMEOUT)?;
    refuse_while_busy(&mut qmp, &vm)?;
    let mut machine = inspect(&mut qmp)?;
    update_table(cx.db, &vm, &machine)?;
    // The disks outlive the process whose folder their addresses may start in.
    for disk in &mut machine.disks {
        let address = Path::new(&machine.cwd).join(&disk.address);
        disk.address = address.to_string_lossy().into_owned();
    }
    let plan = plan(&machine, name, dir)?;
    let new = NewJob {
        kind: JobKind::Twin,
        vm_id: Some(vm.id.clone()),
    };
    let job = cx.db.run(async |c| c.start_job(new).await)?;
    let keeper = Keeper {
        cx,
        args,
        name,
        dir,
        vm: &vm,
        job: &job,
        machine: &machine,
        plan: &plan,
    };
    let outcome = keeper.keep(qmp);
    let text = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let report = BackupReport {
        vm: vm.name.clone(),
        ..BackupReport::default()
    };
    end_job(cx.db, &job, text.as_deref(), &report)?;
    outcome
}

/// What can't be kept as a standby is refused before the guest is touched.
fn plan(machine: &Machine, name: &str, dir: &Path) -> Result<TwinPlan> {
    let blockers = machine.blockers.iter().chain(&machine.memory_blockers);
    let blockers: Vec<&str> = blockers.map(String::as_str).collect();
    if !blockers.is_empty() {
        bail!(
            "no standby of this guest can be had: {}",
            blockers.join("; ")
        );
    }
    let disks = machine.disks.iter().filter(|disk| disk.included);
    if let Some(disk) = disks.clone().find(|disk| !disk.kind.is_local()) {
        bail!("disk {} is not a file or device of this host", disk.id);
    }
    check_room(machine.pid, 0)?;
    let request = TwinRequest {
        dir: dir.to_owned(),
        name: name.to_owned(),
        standby: true,
    };
    Ok(TwinPlan::new(machine, &request, |_| Backing::Blank)?)
}

struct Keeper<'a> {
    cx: &'a Cx<'a>,
    args: &'a TwinStartArgs,
    name: &'a str,
    dir: &'a Path,
    vm: &'a Vm,
    job: &'a JobId,
    machine: &'a Machine,
    plan: &'a TwinPlan,
}

/// How a watch ended.
enum Verdict {
    /// Remove the standby; why, for people.
    Drop(&'static str),
    /// Put it in the guest's place.
    Promote,
}

impl Keeper<'_> {
    /// Registers the folder and the twin's process, and undoes them unless it was promoted.
    fn keep(&self, qmp: Qmp) -> Result<()> {
        let folder = Undo::DeletePath {
            path: self.dir.to_owned(),
        };
        let undos = [vec![("folder", folder)], self.plan.undos()].concat();
        if self.dir.exists() {
            bail!(
                "the folder {} is there: a standby that was promoted has its disks in it; choose \
                 another --name",
                self.dir.display()
            );
        }
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let mut tokens = Vec::new();
        for (step, undo) in &undos {
            let token = journal.register(step, undo);
            tokens.push(token.map_err(anyhow::Error::from_boxed)?);
        }
        let mut kept = false;
        let outcome = self.live(qmp, &mut || {
            kept = true;
            for token in &tokens {
                journal.undone(*token).map_err(anyhow::Error::from_boxed)?;
            }
            Ok(())
        });
        if !kept {
            for (token, (_, undo)) in tokens.into_iter().zip(&undos).rev() {
                undo.apply()?;
                journal.undone(token).map_err(anyhow::Error::from_boxed)?;
            }
        }
        outcome
    }

    /// The life of a standby. `keep` takes its folder and process out of the journal.
    fn live(&self, qmp: Qmp, keep: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        make_dir(self.dir)?;
        let listener = Listener::open(self.dir).context("no socket for requests")?;
        let joins = joins(self.plan.taps(), self.machine.pid, &job_tag(self.job));
        let mut journal = JobJournal::new(self.cx.db, self.job.clone(), self.vm.id.clone());
        let cancelled = || self.cx.cancel.is_set();
        let options = self.options()?;
        let mut capture = Capture::begin(qmp, self.machine, &options, &mut journal, &cancelled)?;
        let (twin, row, mut watch) = match self.make(&mut capture, &options) {
            Ok(made) => made,
            Err(error) => {
                capture.release()?;
                return Err(error);
            }
        };
        let mut asked = None;
        let verdict = self.watch(&mut capture, &mut watch, &listener, &mut asked);
        drop(watch);
        let outcome = match verdict {
            Ok(Verdict::Promote) => self.promote(capture, twin, &joins, keep),
            Ok(Verdict::Drop(why)) => {
                drop(twin);
                capture.release()?;
                Ok(json!({"twin": self.name, "text": format!("{}: removed: {why}", self.name)}))
            }
            Err(error) => {
                drop(twin);
                capture.release()?;
                Err(error)
            }
        };
        drop(row);
        if let Some(request) = asked {
            request.answer(&match &outcome {
                Ok(answer) => answer.clone(),
                Err(error) => json!({"error": format!("{error:#}")}),
            });
        }
        outcome.map(drop)
    }

    fn options(&self) -> Result<CaptureOptions> {
        let mut options = capture_options(
            self.cx,
            self.machine,
            &self.args.capture,
            job_tag(self.job),
            self.dir.to_owned(),
        )?;
        options.memory = true;
        options.outside = true;
        Ok(options)
    }

    /// Loads the twin, and begins to watch.
    fn make(
        &self,
        capture: &mut Capture<'_>,
        options: &CaptureOptions,
    ) -> Result<(Twin, TwinRow<'_>, Watch)> {
        let cancelled = || self.cx.cancel.is_set();
        let row = TwinRow::add(self.cx.db, self.vm, self.machine, &Described::of(self.plan))?;
        let (mut twin, socket) = self.plan.start()?;
        failpoint::pass("standby state")?;
        feed(
            capture,
            &mut twin,
            socket,
            options.spool.deadline,
            &cancelled,
        )?;
        twin.wait_ready(READY_TIMEOUT, &cancelled)?;
        let disks = self.machine.disks.iter().filter(|disk| disk.included);
        let ids: Vec<String> = disks.map(|disk| disk.id.clone()).collect();
        let watch = Watch::begin(capture, &ids)?;
        failpoint::pass("standby watch")?;
        Ok((twin, row, watch))
    }

    /// Watches until something is to be done.
    fn watch(
        &self,
        capture: &mut Capture<'_>,
        watch: &mut Watch,
        listener: &Listener,
        asked: &mut Option<Request>,
    ) -> Result<Verdict> {
        self.cx
            .ui
            .note(&format!("{}: standby, watching", self.name));
        let (mut failed, mut by_hand) = (false, self.args.by_hand);
        loop {
            match watch.guest(capture)? {
                Guest::Ended => return Ok(Verdict::Drop("its guest was ended")),
                Guest::Failed => failed = true,
                Guest::There => {
                    if let Err(lost) = watch.check_point()
                        && !is_dying(capture)
                    {
                        return Err(lost);
                    }
                }
            }
            if failed && !by_hand {
                match self.fence(capture) {
                    Ok(()) => return Ok(Verdict::Promote),
                    Err(error) => self.cx.ui.note(&format!("{}: {error:#}", self.name)),
                }
                by_hand = true;
            }
            while let Some(request) = listener.next() {
                match request.text.as_str() {
                    "status" => {
                        let status = self.status(capture, failed)?;
                        request.answer(&serde_json::to_value(status)?);
                    }
                    "stop" => {
                        *asked = Some(request);
                        return Ok(Verdict::Drop("as asked"));
                    }
                    "promote" if !failed => request.answer(&json!({"error": STILL_RUNS})),
                    "promote" | "promote force" => match self.fence(capture) {
                        Ok(()) => {
                            *asked = Some(request);
                            return Ok(Verdict::Promote);
                        }
                        Err(error) => {
                            request.answer(&json!({"error": format!("{error:#}")}));
                            (failed, by_hand) = (true, true);
                        }
                    },
                    _ => request.answer(&json!({"error": "not a request"})),
                }
            }
            if self.cx.cancel.is_set() {
                return Ok(Verdict::Drop("interrupted"));
            }
            thread::sleep(POLL);
        }
    }

    fn status(&self, capture: &Capture<'_>, failed: bool) -> Result<Status> {
        Ok(Status {
            twin: self.name.to_owned(),
            vm: self.vm.name.clone(),
            state: if failed { "failed" } else { "standby" }.to_owned(),
            time: point_time(capture)?.format(&Rfc3339)?,
            age_s: age_s(capture),
            pause_ms: capture.point().pause_ms,
            dir: self.dir.to_owned(),
            scratch_bytes: disk_usage(self.dir),
        })
    }

    /// Puts the twin in the place of a guest that is dead and fenced. It is taken out of the journal
    /// before it runs, so that no recovery ever ends a machine that is in use.
    fn promote(
        &self,
        capture: Capture<'_>,
        mut twin: Twin,
        joins: &[Join],
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Value> {
        failpoint::pass("standby promote")?;
        let age_s = age_s(&capture);
        let images = capture.outlive()?;
        keep()?;
        let mut warnings = twin.promote(&images, joins)?;
        let socket = self.plan.qmp_socket().display().to_string();
        twin.keep();
        if let Err(error) = self.take_over(&socket) {
            warnings.push(format!(
                "the table of guests could not be brought up to it: {error:#}"
            ));
        }
        let mut text = format!(
            "{} runs in the place of {}; what the guest did in its last {age_s:.1} s is lost; QMP: \
             {socket}",
            self.name, self.vm.name
        );
        for warning in &warnings {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        self.cx.ui.note(&text);
        Ok(
            json!({"twin": self.name, "vm": self.vm.name, "promoted": true, "lost_s": age_s,
                  "qmp": socket, "warnings": warnings, "text": text}),
        )
    }

    /// Never two masters: kills the guest's process, and whatever else the user says.
    fn fence(&self, capture: &Capture<'_>) -> Result<()> {
        capture
            .guest()
            .process
            .kill(KILL_TIMEOUT)
            .context("the guest could not be killed, so its twin was not promoted")?;
        let Some(fence) = &self.args.fence else {
            return Ok(());
        };
        let mut child = without_our_settings(&mut Command::new("sh"))
            .args(["-c", fence])
            .env("VMTWIN_VM", &self.vm.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("the fencing command could not be started")?;
        let begun = Instant::now();
        while begun.elapsed() < FENCE_TIMEOUT {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("fencing failed ({status}), so the twin was not promoted"),
                None => thread::sleep(POLL),
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        bail!("fencing took too long, so the twin was not promoted")
    }

    /// The VM of the table is the twin from now on.
    fn take_over(&self, socket: &str) -> Result<()> {
        let connection = Connection {
            kind: ConnectionKind::Qmp,
            address: socket.to_owned(),
        };
        let db = self.cx.db;
        Ok(db.run(async |c| c.set_connection(&self.vm.id, &connection).await)?)
    }
}

/// Whether the guest's process ends now: it takes its exports with it, an instant before it is gone.
fn is_dying(capture: &Capture<'_>) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < DYING_TIMEOUT {
        if !capture.guest().process.is_alive() {
            return true;
        }
        thread::sleep(POLL);
    }
    false
}

fn point_time(capture: &Capture<'_>) -> Result<OffsetDateTime> {
    let nanos = i128::from(capture.point().time_us) * 1000;
    Ok(OffsetDateTime::from_unix_timestamp_nanos(nanos)?)
}

fn age_s(capture: &Capture<'_>) -> f64 {
    point_time(capture).map_or(0.0, |point| {
        (OffsetDateTime::now_utc() - point).as_seconds_f64()
    })
}
