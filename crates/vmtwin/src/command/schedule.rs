//! `vmtwin schedule`: what is to happen by itself.

use anyhow::{Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{RunOutcome, Schedule, ScheduleRun, VmRole};

use crate::backup::Cx;
use crate::cli::{ScheduleAddArgs, ScheduleCommand};
use crate::cluster::Identity;
use crate::task::Runner;
use crate::timer::{self, Done, Spec, When};
use crate::ui::table;

/// Due times and runs that are shown.
const SHOWN_DUE: usize = 5;
const SHOWN_RUNS: u32 = 20;
const EXIT_WARNINGS: i32 = 3;

/// A schedule, for people and programs.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    enabled: bool,
    spec: Spec,
    /// RFC 3339, UTC.
    next: Vec<String>,
    runs: Vec<ScheduleRun>,
}

/// Runs `vmtwin schedule …`; gives the exit code.
pub(crate) fn run(cx: &Cx<'_>, command: &ScheduleCommand) -> Result<i32> {
    match command {
        ScheduleCommand::Add(args) => add(cx, args)?,
        ScheduleCommand::List => list(cx)?,
        ScheduleCommand::Show { name } => show(cx, name)?,
        ScheduleCommand::Remove { name } => {
            let schedule = find(cx, name)?;
            cx.db.run(async |c| c.remove_schedule(&schedule.id).await)?;
            cx.ui
                .note(&format!("{name}: removed; what it backed up stays"));
        }
        ScheduleCommand::Enable { name } => enable(cx, name, true)?,
        ScheduleCommand::Disable { name } => enable(cx, name, false)?,
        ScheduleCommand::Run { name } => return run_now(cx, name),
        ScheduleCommand::Follow => {
            cx.ui
                .note("following the schedules of this host; Ctrl-C ends it");
            timer::follow(cx, &Runner::new(cx.home, 1)?, &|| false)?;
        }
    }
    Ok(0)
}

fn find(cx: &Cx<'_>, name: &str) -> Result<Schedule> {
    Ok(cx.db.run(async |c| c.schedule(name).await)?)
}

fn add(cx: &Cx<'_>, args: &ScheduleAddArgs) -> Result<()> {
    let guests = cx.db.run(async |c| c.vms().await)?;
    for name in &args.vms {
        let known = |vm: &vmtwin_catalog::Vm| vm.name == *name && vm.role == VmRole::Guest;
        if !guests.iter().any(known) {
            bail!("there is no guest {name}; see: vmtwin vm list");
        }
    }
    let is_node = Identity::of(cx.home)?.is_some();
    let host = match is_node && !args.this_host {
        true => None,
        false => Some(timer::host()?),
    };
    let follower = match host {
        None => "the nodes follow their",
        Some(_) => "this host follows its",
    };
    if args.cluster {
        refuse_cluster(cx, &args.name)?;
        if host.is_none() && args.output.is_none() {
            refuse_scattered(cx)?;
        }
    }
    let spec = Spec::new(args, host)?;
    if args.prune && !spec.keep.forgets() {
        bail!("--prune frees what rules forget: give some, such as --keep-daily 7");
    }
    let document = serde_json::to_value(&spec)?;
    cx.db
        .run(async |c| c.add_schedule(&args.name, &document).await)?;
    let shown = shown(cx, find(cx, &args.name)?)?;
    cx.ui.result(&shown, || {
        let next = shown.next.first().map_or("never", String::as_str);
        format!(
            "{}: next due {next}, if {follower} schedules (vmtwin serve)",
            args.name
        )
    })
}

/// Fails where there is no cluster to back up, or the name cannot stand in those of files.
fn refuse_cluster(cx: &Cx<'_>, name: &str) -> Result<()> {
    if let Err(why) = crate::cluster::cli::label(name) {
        bail!("{name:?} names the files of a cluster's backups: {why}");
    }
    match cx.db.run(async |c| c.cluster().await)? {
        Some(_) => Ok(()),
        None => Err(vmtwin_catalog::Error::NoCluster.into()),
    }
}

/// Any node may make a backup that is due, and keeps it in its own home folder unless it is told where:
/// of several nodes each would have a part of them, and none could say which are the latest.
fn refuse_scattered(cx: &Cx<'_>) -> Result<()> {
    let nodes = cx.db.run(async |c| c.nodes().await)?.len();
    if nodes > 1 {
        bail!(
            "the cluster has {nodes} nodes, and any of them may make a backup that is due: give --output \
             with a place that all of them reach (s3://BUCKET/PREFIX, or a folder that they share), or \
             --this-host, so that this node alone makes them"
        );
    }
    Ok(())
}

fn list(cx: &Cx<'_>) -> Result<()> {
    let schedules = cx.db.run(async |c| c.schedules().await)?;
    let all: Vec<Shown> = schedules
        .into_iter()
        .map(|schedule| shown(cx, schedule))
        .collect::<Result<_>>()?;
    cx.ui.result(&all, || {
        if all.is_empty() {
            return "no schedule; make one: vmtwin schedule add nightly --on daily --all".into();
        }
        let cells: Vec<Vec<String>> = all
            .iter()
            .map(|s| {
                vec![
                    s.name.clone(),
                    when(&s.spec),
                    guests(&s.spec),
                    match s.spec.cluster {
                        Some(_) => "-".to_owned(),
                        None => s.spec.consistency.as_str().to_owned(),
                    },
                    next(s),
                    last(&s.runs),
                ]
            })
            .collect();
        table(
            &[
                "SCHEDULE",
                "WHEN",
                "GUESTS",
                "CONSISTENCY",
                "NEXT (UTC)",
                "LAST",
            ],
            &cells,
        )
    })
}

fn show(cx: &Cx<'_>, name: &str) -> Result<()> {
    let shown = shown(cx, find(cx, name)?)?;
    let vms = cx.db.run(async |c| c.vms().await)?;
    cx.ui.result(&shown, || {
        let mut lines = vec![
            format!("{name}: {}, {}", when(&shown.spec), guests(&shown.spec)),
            match &shown.spec.host {
                Some(host) => format!("  on host {host}"),
                None if shown.spec.cluster.is_some() => "  on one node of the cluster".to_owned(),
                None => "  on every node of the cluster, each for its own guests".to_owned(),
            },
        ];
        if !shown.enabled {
            lines.push("  disabled".to_owned());
        }
        lines.extend(shown.next.iter().map(|due| format!("  due  {due}")));
        for run in &shown.runs {
            let vm = vms.iter().find(|vm| vm.id.as_str() == run.subject);
            let what = vm.map_or(run.subject.as_str(), |vm| &vm.name);
            let outcome = run.outcome.map_or("runs", RunOutcome::as_str);
            let note = run.note.as_deref().unwrap_or_default();
            lines.push(format!(
                "  run  {}  {what}  {outcome}  {note}",
                rfc3339(run.due_at)
            ));
        }
        lines.join("\n")
    })
}

fn enable(cx: &Cx<'_>, name: &str, enabled: bool) -> Result<()> {
    let schedule = find(cx, name)?;
    cx.db
        .run(async |c| c.enable_schedule(&schedule.id, enabled).await)?;
    let word = if enabled { "followed" } else { "not followed" };
    cx.ui.note(&format!("{name}: {word} from now on"));
    Ok(())
}

fn run_now(cx: &Cx<'_>, name: &str) -> Result<i32> {
    let schedule = find(cx, name)?;
    let spec = Spec::of(&schedule)?;
    let is_of_all = spec.host.is_none() && spec.cluster.is_none();
    if is_of_all && Identity::of(cx.home)?.is_some() {
        cx.ui
            .note("this is for what is on this node; run it on the others for theirs");
    }
    let done = timer::run_now(cx, &schedule)?;
    cx.ui.result(&done, || {
        let line = |one: &Done| {
            let note = one.note.as_deref().unwrap_or_default();
            format!("{}: {} {note}", one.what, one.outcome)
        };
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    let any = |outcome| done.iter().any(|one| one.outcome == outcome);
    Ok(match any(RunOutcome::Failed) || cx.cancel.is_set() {
        true => 1,
        false if any(RunOutcome::Warnings) => EXIT_WARNINGS,
        false => 0,
    })
}

fn shown(cx: &Cx<'_>, schedule: Schedule) -> Result<Shown> {
    let spec = Spec::of(&schedule)?;
    let next = next_due(&spec, schedule.created_at, SHOWN_DUE)?;
    let runs = cx
        .db
        .run(async |c| c.runs(&schedule.id, SHOWN_RUNS).await)?;
    Ok(Shown {
        name: schedule.name,
        enabled: schedule.enabled,
        spec,
        next,
        runs,
    })
}

/// The next due times, RFC 3339.
pub(crate) fn next_due(spec: &Spec, created: OffsetDateTime, count: usize) -> Result<Vec<String>> {
    let mut next = Vec::new();
    let mut at = OffsetDateTime::now_utc();
    while next.len() < count {
        let Some(due) = spec.next_due(created, at)? else {
            break;
        };
        next.push(rfc3339(due));
        at = due;
    }
    Ok(next)
}

fn rfc3339(time: OffsetDateTime) -> String {
    let seconds = time.replace_nanosecond(0).unwrap_or(time);
    seconds.format(&Rfc3339).unwrap_or_default()
}

/// When it is due, in words.
pub(crate) fn when(spec: &Spec) -> String {
    match &spec.when {
        When::On(calendar) => calendar.clone(),
        When::EveryS(seconds) => match seconds {
            s if s % 86_400 == 0 => format!("every {} d", s / 86_400),
            s if s % 3600 == 0 => format!("every {} h", s / 3600),
            s if s % 60 == 0 => format!("every {} min", s / 60),
            s => format!("every {s} s"),
        },
        When::OnChange(settle_s) => format!("{settle_s} s after a change"),
    }
}

/// Who follows it, in words.
pub(crate) fn follower(spec: &Spec) -> String {
    spec.host.clone().unwrap_or_else(|| "every node".to_owned())
}

/// Of what, in words.
pub(crate) fn guests(spec: &Spec) -> String {
    if spec.cluster.is_some() {
        return "the cluster".to_owned();
    }
    match (&spec.vms, spec.groups.as_slice()) {
        (Some(names), _) => names.join(", "),
        (None, []) => "all".to_owned(),
        (None, groups) => format!("group {}", groups.join(", ")),
    }
}

fn next(shown: &Shown) -> String {
    match (shown.enabled, shown.next.first()) {
        (false, _) => "disabled".to_owned(),
        (true, None) => "never".to_owned(),
        (true, Some(due)) => due.trim_end_matches('Z').replace('T', " "),
    }
}

/// How the latest due time went: the worst of its parts.
fn last(runs: &[ScheduleRun]) -> String {
    let Some(latest) = runs.first().map(|run| run.due_at) else {
        return "-".to_owned();
    };
    let of_latest = || runs.iter().take_while(|run| run.due_at == latest);
    let parts: Vec<Option<RunOutcome>> = of_latest().map(|run| run.outcome).collect();
    timer::worst(&parts)
        .map_or("runs", RunOutcome::as_str)
        .to_owned()
}
