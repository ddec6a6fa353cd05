//! What a schedule does when it is due: a backup of each of its guests, then retention; or one of
//! the cluster, which looks after its own.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;
use vmtwin_catalog::{NewTask, RunOutcome, Schedule, TaskState, Vm, VmRole};

use super::spec::{ClusterBackup, Spec};
use super::{Due, Part, lock, nodes};
use crate::backup::{Cx, shuffle};
use crate::cluster::place::{Here, Place};
use crate::notify;
use crate::task::{BY_SCHEDULE, Ended, Runner};

/// What stands for the work after the guests.
const RETENTION: &str = "retention";
/// What stands for the cluster.
const CLUSTER: &str = "cluster";
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
pub(super) fn run(cx: &Cx<'_>, runner: &Runner, due: &Due) {
    let name = &due.schedule.name;
    let begins = Some(due.begins);
    let run = Run {
        cx,
        runner,
        schedule: &due.schedule,
        spec: &due.spec,
        at: due.at,
    };
    let ended = match due.part {
        Part::Guests => run.all(begins, true),
        Part::AfterAll => run.after_all(),
    };
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
    let runner = Runner::new(cx.home, 1)?;
    let at = OffsetDateTime::now_utc();
    let run = Run {
        cx,
        runner: &runner,
        schedule,
        spec: &spec,
        at,
    };
    let ended = run.all(None, false);
    notify::after_run(cx, schedule, at);
    // Nothing may follow the schedules here, such as where cron does.
    if let Err(error) = notify::deliver_due(cx) {
        cx.ui.note(&format!("warning: {error:#}"));
    }
    ended
}

/// A due time that is worked on.
pub(super) struct Run<'a> {
    pub(super) cx: &'a Cx<'a>,
    runner: &'a Runner,
    pub(super) schedule: &'a Schedule,
    pub(super) spec: &'a Spec,
    pub(super) at: OffsetDateTime,
}

impl Run<'_> {
    /// All of it; of a schedule of all nodes only this one's part, where `others_follow` in their own
    /// time.
    fn all(&self, begins: Option<OffsetDateTime>, others_follow: bool) -> Result<Vec<Done>> {
        if let Some(cluster) = &self.spec.cluster {
            let done = self.claimed(CLUSTER, CLUSTER, || self.cluster(cluster))?;
            return Ok(done.into_iter().collect());
        }
        crate::libvirt::table::follow(self.cx)?;
        let here = Here::of(self.cx.home, self.cx.db)?;
        let is_part = others_follow && self.spec.is_of_all_nodes();
        let Some(node) = here.own().filter(|_| is_part) else {
            return self.guests_of(&here, begins, true);
        };
        let mut done = Vec::new();
        let subject = nodes::subject(&node.name);
        let part = self.claimed(&subject, &subject, || {
            done = self.guests_of(&here, begins, false)?;
            match self.cx.cancel.is_set() {
                true => Ok((
                    RunOutcome::Interrupted,
                    Some("it was told to end".to_owned()),
                )),
                false => Ok((RunOutcome::Done, None)),
            }
        })?;
        // A part that went well is only of use to the other nodes.
        done.extend(part.filter(|part| part.outcome != RunOutcome::Done));
        Ok(done)
    }

    /// What comes after the parts of all nodes.
    fn after_all(&self) -> Result<Vec<Done>> {
        let Some(summed) =
            self.claimed(nodes::AFTER_ALL, nodes::AFTER_ALL, || nodes::sum_up(self))?
        else {
            return Ok(Vec::new());
        };
        let vms = self.cx.db.run(async |c| c.vms().await)?;
        let vms = vms.into_iter().filter(|vm| self.spec.wants(vm));
        let names: Vec<String> = vms.map(|vm| vm.name).collect();
        let mut done = vec![summed];
        if !self.cx.cancel.is_set() && self.spec.keep.forgets() {
            done.extend(self.claimed(RETENTION, RETENTION, || self.retention(&names))?);
        }
        Ok(done)
    }

    /// The guests of this host, then retention unless it is done for all nodes later.
    fn guests_of(
        &self,
        here: &Here,
        begins: Option<OffsetDateTime>,
        with_retention: bool,
    ) -> Result<Vec<Done>> {
        let (cx, spec) = (self.cx, self.spec);
        let (mut vms, mut done) = self.guests(here)?;
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
                        let one = self.claimed(vm.id.as_str(), &vm.name, || match too_late {
                            true => Ok((RunOutcome::Missed, Some("the window is over".to_owned()))),
                            false => self.backup(&vm.name),
                        });
                        lock(&ended).extend(one.transpose());
                    }
                });
            }
        });
        for one in ended.into_inner().unwrap_or_default() {
            done.push(one?);
        }
        if with_retention && !cx.cancel.is_set() && spec.keep.forgets() {
            done.extend(self.claimed(RETENTION, RETENTION, || self.retention(&names))?);
        }
        Ok(done)
    }

    /// The guests of this host, and what is to be said of those that are not there.
    fn guests(&self, here: &Here) -> Result<(Vec<Vm>, Vec<Done>)> {
        let vms = self.cx.db.run(async |c| c.vms().await)?;
        let mut vms: Vec<Vm> = vms
            .into_iter()
            .filter(|vm| vm.role == VmRole::Guest)
            .collect();
        let is_here = |vm: &Vm| here.place(vm) == Place::Here;
        let Some(names) = &self.spec.vms else {
            vms.retain(|vm| self.spec.wants(vm) && is_here(vm));
            return Ok((vms, Vec::new()));
        };
        let mut missing = Vec::new();
        // A host that follows alone says what it cannot do; of all nodes, one says it after all.
        let elsewhere = |vm: &&Vm| names.contains(&vm.name) && !is_here(vm);
        for vm in vms.iter().filter(elsewhere) {
            if !self.spec.is_of_all_nodes() {
                let refused = || {
                    here.refuse_elsewhere(vm, "backup")?;
                    anyhow::bail!("{} is on no node now; see: vmtwin vm list", vm.name)
                };
                missing.extend(self.claimed(vm.id.as_str(), &vm.name, refused)?);
            }
        }
        for name in names {
            if !vms.iter().any(|vm| vm.name == *name) {
                let gone = || {
                    let note = "no such guest; see: vmtwin vm list".to_owned();
                    Ok((RunOutcome::Failed, Some(note)))
                };
                missing.extend(self.claimed(name, name, gone)?);
            }
        }
        vms.retain(|vm| names.contains(&vm.name) && is_here(vm));
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
        let ended = self.ours("backup", name, arguments)?;
        let report = &ended.result[0];
        let text = |key: &str| report[key].as_str().map(str::to_owned);
        let warning = report["warnings"][0].as_str().map(str::to_owned);
        Ok(match ended.state {
            TaskState::Done => (RunOutcome::Done, text("snapshot")),
            TaskState::Warnings => (RunOutcome::Warnings, warning.or(text("snapshot"))),
            _ => (RunOutcome::Failed, text("error").or(Some(ended.said))),
        })
    }

    /// Backs up the cluster; what it removes are backups that this schedule made.
    fn cluster(&self, cluster: &ClusterBackup) -> Result<(RunOutcome, Option<String>)> {
        let mut arguments = ["cluster", "backup"].map(str::to_owned).to_vec();
        arguments.push(format!("--label={}", self.schedule.name));
        if let Some(output) = &cluster.output {
            arguments.push(format!("--output={}", output.display()));
        }
        if cluster.with_secrets {
            arguments.push("--with-secrets".to_owned());
        }
        if self.spec.keep.last > 0 {
            arguments.push(format!("--keep={}", self.spec.keep.last));
        }
        let ended = self.start("cluster backup", None, arguments)?;
        let file = ended.result["file"].as_str().map(str::to_owned);
        let warning = ended.result["warnings"][0].as_str().map(str::to_owned);
        Ok(match ended.state {
            TaskState::Done => (RunOutcome::Done, file),
            TaskState::Warnings => (RunOutcome::Warnings, warning.or(file)),
            _ => (RunOutcome::Failed, Some(ended.said)),
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
            let ended = self.ours("snapshot forget", name, arguments)?;
            match ended.state {
                TaskState::Done => {}
                TaskState::Warnings if worst.0 == RunOutcome::Done => {
                    worst = (RunOutcome::Warnings, Some(ended.said));
                }
                TaskState::Warnings => {}
                _ => worst = (RunOutcome::Failed, Some(format!("{name}: {}", ended.said))),
            }
            if self.cx.cancel.is_set() {
                break;
            }
        }
        Ok(worst)
    }

    /// Runs a command of this program for a guest.
    fn ours(&self, command: &str, vm: &str, arguments: Vec<String>) -> Result<Ended> {
        self.start(command, Some(vm), arguments)
    }

    fn start(&self, command: &str, vm: Option<&str>, arguments: Vec<String>) -> Result<Ended> {
        let new = NewTask {
            command: command.to_owned(),
            arguments,
            asked_by: format!("{BY_SCHEDULE}{}", self.schedule.name),
            asked_key: None,
            vm_name: vm.map(str::to_owned),
        };
        self.runner.run(&new, &|| self.cx.cancel.is_set())
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
