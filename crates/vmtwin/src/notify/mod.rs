//! Notifications: who is told what, and when.
//!
//! ```text
//!   runs that ended, untold ─► decide ─► messages (catalog) ─► claimed ─► delivered, or put back
//!        └─────────── one transaction ───────────┘              └── by a thread of `serve` ──┘
//! ```
//! What fails is told when it begins to fail, once a day while it lasts, and once when it is well
//! again; what was missed is told once per due time. All that one run brought is one message for each
//! who is told. Nothing is remembered but in the catalog.

mod decide;
mod deliver;
mod message;
mod spec;

use std::collections::HashSet;

use anyhow::Result;
use time::OffsetDateTime;
use vmtwin_catalog::{RunOutcome, Schedule, ScheduleRun, Situation, Vm, VmRole};

use crate::backup::Cx;
use crate::cluster::Identity;
use crate::timer::{self, ALL, Spec as ScheduleSpec};
use decide::{Happened, Occasion, decide};

pub(crate) use deliver::{deliver_due, follow};
pub(crate) use message::{test_message, to_deliver};
pub(crate) use spec::{Kind, Spec};

/// Sees to it that people are told how a run of a schedule ended. It never fails the run: what it
/// could not note is told at the next start.
pub(crate) fn after_run(cx: &Cx<'_>, schedule: &Schedule, due_at: OffsetDateTime) {
    if let Err(error) = tell_run(cx, schedule, due_at) {
        let name = &schedule.name;
        cx.ui
            .note(&format!("warning: {name}: nobody was told yet: {error:#}"));
    }
}

/// How a backup that somebody started by hand ended, for one guest.
#[derive(Debug, Clone)]
pub(crate) struct ByHand {
    /// The guest, by name.
    pub(crate) vm: String,
    /// How.
    pub(crate) outcome: RunOutcome,
    /// A snapshot's id, or what went wrong.
    pub(crate) note: Option<String>,
}

/// The same for backups that somebody started by hand, elsewhere than at a terminal: `by` says who.
#[allow(dead_code, reason = "for whoever runs backups beside schedules")]
pub(crate) fn after_backup(cx: &Cx<'_>, by: &str, ended: &[ByHand]) -> Result<()> {
    let guests = guests(cx)?;
    let occasion = Occasion {
        host: timer::host()?,
        now: OffsetDateTime::now_utc(),
        schedule: None,
        by: Some(by.to_owned()),
        due_at: None,
        known: ids(&guests),
    };
    let happened = ended.iter().filter_map(|one| {
        let vm = guests.iter().find(|vm| vm.name == one.vm)?;
        Some(Happened {
            subject: vm.id.as_str().to_owned(),
            alias: None,
            what: one.vm.clone(),
            guests: Some(vec![one.vm.clone()]),
            outcome: one.outcome,
            note: one.note.clone(),
        })
    });
    let happened: Vec<Happened> = happened.collect();
    let settled = |situation: &Situation| decide(&occasion, &happened, situation);
    cx.db.run(async |c| c.tell(None, settled).await)?;
    Ok(())
}

/// Tells what a process of this host that died left untold.
pub(crate) fn sweep(cx: &Cx<'_>, host: &str) -> Result<()> {
    let schedules = cx.db.run(async |c| c.schedules().await)?;
    for (id, due_at) in cx.db.run(async |c| c.untold().await)? {
        let Some(schedule) = schedules.iter().find(|one| one.id == id) else {
            continue;
        };
        let is_node = Identity::of(cx.home)?.is_some();
        if ScheduleSpec::of(schedule).is_ok_and(|spec| spec.is_followed_by(host, is_node)) {
            tell_run(cx, schedule, due_at)?;
        }
    }
    Ok(())
}

fn tell_run(cx: &Cx<'_>, schedule: &Schedule, due_at: OffsetDateTime) -> Result<()> {
    let guests = guests(cx)?;
    let spec = ScheduleSpec::of(schedule)?;
    let occasion = Occasion {
        host: timer::host()?,
        now: OffsetDateTime::now_utc(),
        schedule: Some(schedule.name.clone()),
        by: None,
        due_at: Some(due_at),
        known: ids(&guests),
    };
    let settled = |situation: &Situation| {
        let runs = situation.runs.iter();
        let happened: Vec<Happened> = runs
            .filter_map(|run| of_run(run, schedule, &spec, &guests))
            .collect();
        decide(&occasion, &happened, situation)
    };
    let due = Some((&schedule.id, due_at));
    cx.db.run(async |c| c.tell(due, settled).await)?;
    Ok(())
}

/// A part of a run, in the words of people.
fn of_run(
    run: &ScheduleRun,
    schedule: &Schedule,
    spec: &ScheduleSpec,
    guests: &[Vm],
) -> Option<Happened> {
    let outcome = run.outcome?;
    let note = run.note.clone();
    let of_schedule = |subject: &str| format!("{}/{subject}", schedule.id);
    if let Some(vm) = guests.iter().find(|vm| vm.id.as_str() == run.subject) {
        return Some(Happened {
            subject: run.subject.clone(),
            // It may have failed under its name, before there was such a guest.
            alias: Some(of_schedule(&vm.name)),
            what: vm.name.clone(),
            guests: Some(vec![vm.name.clone()]),
            outcome,
            note,
        });
    }
    let named = spec
        .vms
        .as_ref()
        .filter(|names| names.contains(&run.subject));
    Some(Happened {
        subject: of_schedule(&run.subject),
        alias: None,
        what: match run.subject.as_str() {
            ALL => "all guests".to_owned(),
            other => other.to_owned(),
        },
        guests: match named {
            Some(_) => Some(vec![run.subject.clone()]),
            None => spec.vms.clone(),
        },
        outcome,
        note,
    })
}

fn guests(cx: &Cx<'_>) -> Result<Vec<Vm>> {
    let mut vms = cx.db.run(async |c| c.vms().await)?;
    vms.retain(|vm| vm.role == VmRole::Guest);
    Ok(vms)
}

fn ids(guests: &[Vm]) -> HashSet<String> {
    guests.iter().map(|vm| vm.id.as_str().to_owned()).collect()
}
