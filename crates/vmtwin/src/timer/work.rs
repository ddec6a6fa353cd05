//! What a schedule does when it is due: a backup of each of its guests, then retention.

use std::collections::VecDeque;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use vmtwin_catalog::{RunOutcome, Schedule, Vm, VmRole};

use super::spec::Spec;
use super::{Due, lock};
use crate::backup::{Cx, shuffle};
use crate::notify;

/// What stands for the work after the guests.
const RETENTION: &str = "retention";
/// Exit code of what was done with warnings.
const WITH_WARNINGS: i32 = 3;
const POLL: Duration = Duration::from_millis(100);
/// Longest answer of a command that is kept.
const MAX_ANSWER_BYTES: u64 = 4 << 20;
/// Longest note.
const MAX_NOTE_CHARS: usize = 500;

/// What became of a part of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Done {
    /// The guest, or `retention`.
    pub(crate) what: String,
    pub(crate) outcome: RunOutcome,
    /// A snapshot's id, or what went wrong.
    pub(crate) note: Option<String>,
}

/// Does what is due.
pub(super) fn run(cx: &Cx<'_>, due: &Due) {
    let name = &due.schedule.name;
    let ended = all(cx, &due.schedule, &due.spec, due.at, Some(due.begins));
    notify::after_run(cx, &due.schedule, due.at);
    match ended {
        Ok(done) => {
            for one in done {
                let note = one.note.map_or(String::new(), |note| format!(": {note}"));
                cx.ui
                    .note(&format!("{name}: {} {}{note}", one.what, one.outcome));
            }
        }
        Err(error) => cx.ui.note(&format!("{name}: {error:#}")),
    }
}

/// Does it at once.
pub(crate) fn run_now(cx: &Cx<'_>, schedule: &Schedule) -> Result<Vec<Done>> {
    let spec = Spec::of(schedule)?;
    let at = OffsetDateTime::now_utc();
    let ended = all(cx, schedule, &spec, at, None);
    notify::after_run(cx, schedule, at);
    // Nothing may follow the schedules here, such as where cron does.
    if let Err(error) = notify::deliver_due(cx) {
        cx.ui.note(&format!("warning: {error:#}"));
    }
    ended
}

fn all(
    cx: &Cx<'_>,
    schedule: &Schedule,
    spec: &Spec,
    at: OffsetDateTime,
    begins: Option<OffsetDateTime>,
) -> Result<Vec<Done>> {
    crate::libvirt::table::follow(cx)?;
    let run = Run {
        cx,
        schedule,
        spec,
        at,
    };
    let (mut vms, mut done) = run.guests()?;
    if spec.random_order {
        shuffle(&mut vms)?;
    }
    let names: Vec<String> = vms.iter().map(|vm| vm.name.clone()).collect();
    let queue = Mutex::new(VecDeque::from(vms));
    let ended = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..spec.parallel {
            scope.spawn(|| {
                while !cx.cancel.is_set() {
                    let Some(vm) = lock(&queue).pop_front() else {
                        break;
                    };
                    let too_late = begins.is_some_and(|b| spec.is_over_by_window(b));
                    let one = run.claimed(vm.id.as_str(), &vm.name, || match too_late {
                        true => Ok((RunOutcome::Missed, Some("the window is over".to_owned()))),
                        false => run.backup(&vm.name),
                    });
                    lock(&ended).extend(one.transpose());
                }
            });
        }
    });
    for one in ended.into_inner().unwrap_or_default() {
        done.push(one?);
    }
    if !cx.cancel.is_set() && spec.keep.forgets() {
        done.extend(run.claimed(RETENTION, RETENTION, || run.retention(&names))?);
    }
    Ok(done)
}

struct Run<'a> {
    cx: &'a Cx<'a>,
    schedule: &'a Schedule,
    spec: &'a Spec,
    at: OffsetDateTime,
}

impl Run<'_> {
    /// The guests, and what is to be said of those that are not there.
    fn guests(&self) -> Result<(Vec<Vm>, Vec<Done>)> {
        let vms = self.cx.db.run(async |c| c.vms().await)?;
        let mut vms: Vec<Vm> = vms
            .into_iter()
            .filter(|vm| vm.role == VmRole::Guest)
            .collect();
        let Some(names) = &self.spec.vms else {
            return Ok((vms, Vec::new()));
        };
        let mut missing = Vec::new();
        for name in names {
            if !vms.iter().any(|vm| vm.name == *name) {
                let gone = || {
                    let note = "no such guest; see: vmtwin vm list".to_owned();
                    Ok((RunOutcome::Failed, Some(note)))
                };
                missing.extend(self.claimed(name, name, gone)?);
            }
        }
        vms.retain(|vm| names.contains(&vm.name));
        vms.sort_by_key(|vm| names.iter().position(|name| *name == vm.name));
        Ok((vms, missing))
    }

    /// Claims a part, does it, and notes how it ended; nothing where somebody else has it.
    fn claimed(
        &self,
        subject: &str,
        what: &str,
        act: impl FnOnce() -> Result<(RunOutcome, Option<String>)>,
    ) -> Result<Option<Done>> {
        let (db, id, at) = (self.cx.db, &self.schedule.id, self.at);
        if !db.run(async |c| c.claim_run(id, at, subject).await)? {
            return Ok(None);
        }
        let (outcome, note) = act().unwrap_or_else(|error| {
            let text = format!("{error:#}");
            (RunOutcome::Failed, Some(text))
        });
        let note: Option<String> = note.map(|text| text.chars().take(MAX_NOTE_CHARS).collect());
        let kept = note.as_deref();
        db.run(async |c| c.finish_run(id, at, subject, outcome, kept).await)?;
        Ok(Some(Done {
            what: what.to_owned(),
            outcome,
            note,
        }))
    }

    fn backup(&self, name: &str) -> Result<(RunOutcome, Option<String>)> {
        let mut arguments = vec!["backup".to_owned()];
        arguments.extend(self.spec.backup_options());
        arguments.extend(["--".to_owned(), name.to_owned()]);
        let (code, answer, said) = self.ours(&arguments)?;
        let report = &answer[0];
        let text = |key: &str| report[key].as_str().map(str::to_owned);
        let warning = report["warnings"][0].as_str().map(str::to_owned);
        Ok(match code {
            Some(0) => (RunOutcome::Done, text("snapshot")),
            Some(WITH_WARNINGS) => (RunOutcome::Warnings, warning.or(text("snapshot"))),
            _ => (RunOutcome::Failed, text("error").or(Some(said))),
        })
    }

    fn retention(&self, names: &[String]) -> Result<(RunOutcome, Option<String>)> {
        let mut worst = (RunOutcome::Done, None);
        for (number, name) in names.iter().enumerate() {
            let mut arguments = ["snapshot", "forget"].map(str::to_owned).to_vec();
            arguments.push(format!("--vm={name}"));
            arguments.extend(self.spec.keep.options());
            if self.spec.keep.prune && number + 1 == names.len() {
                arguments.push("--prune".to_owned());
            }
            let (code, _, said) = self.ours(&arguments)?;
            match code {
                Some(0) => {}
                Some(WITH_WARNINGS) if worst.0 == RunOutcome::Done => {
                    worst = (RunOutcome::Warnings, Some(said));
                }
                Some(WITH_WARNINGS) => {}
                _ => worst = (RunOutcome::Failed, Some(format!("{name}: {said}"))),
            }
            if self.cx.cancel.is_set() {
                break;
            }
        }
        Ok(worst)
    }

    /// Runs this program; gives its exit code, the document it printed, and the last line it said.
    fn ours(&self, arguments: &[String]) -> Result<(Option<i32>, Value, String)> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--json", "--quiet"]).args(arguments);
        self.cx.home.pass_on(&mut command);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("a command cannot be started")?;
        let answer = child.stdout.take().map(|out| thread::spawn(|| all_of(out)));
        let said = child.stderr.take().map(|out| thread::spawn(|| all_of(out)));
        let status = self.wait(&mut child)?;
        let text = |reader: Option<thread::JoinHandle<String>>| {
            reader
                .and_then(|thread| thread.join().ok())
                .unwrap_or_default()
        };
        let (answer, said) = (text(answer), text(said));
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let last = last
            .unwrap_or("it said nothing")
            .trim_start_matches("error: ");
        let document = serde_json::from_str(&answer).unwrap_or(Value::Null);
        Ok((status.code(), document, last.to_owned()))
    }

    /// Told to end, a command undoes what it began.
    fn wait(&self, child: &mut Child) -> Result<std::process::ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.cx.cancel.is_set() && !told {
                let _ = kill_process(Pid::from_child(child), Signal::INT);
                told = true;
            }
            thread::sleep(POLL);
        }
    }
}

impl Spec {
    /// Whether its window is over for a guest whose turn comes now.
    fn is_over_by_window(&self, begins: OffsetDateTime) -> bool {
        let now = OffsetDateTime::now_utc();
        let window = self.window_s.map(Duration::from_secs);
        window.is_some_and(|window| now > begins + window)
    }
}

fn all_of(out: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut limited = out.take(MAX_ANSWER_BYTES);
    let _ = limited.read_to_end(&mut bytes);
    // A command must never wait for us to read on.
    let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}
