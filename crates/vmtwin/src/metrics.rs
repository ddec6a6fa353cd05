//! Figures for Prometheus, in its text format (version 0.0.4).
//!
//! Names and labels are a promise to alert rules and boards (`packaging/prometheus`,
//! `packaging/grafana`): change them there too. Times are seconds since 1970, sizes bytes.

use std::fmt::Write;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use vmtwin_catalog::{Figures, GuestFigures, RunOutcome, ScheduleFigures};

use crate::db::Db;
use crate::timer::{Spec, worst};

/// Longest value of a label.
const MAX_LABEL_CHARS: usize = 200;

/// All figures, as `/metrics` serves them. With `process`, this process's own too: not for a file
/// that node_exporter serves beside its own.
pub(crate) fn render(db: &Db, process: bool) -> Result<String> {
    let figures = db.run(async |c| c.figures().await)?;
    let mut out = Exposition::default();
    out.family("vmtwin_build_info", "Which vmtwin this is.");
    out.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let now = OffsetDateTime::now_utc();
    guests(&mut out, &figures.guests, now);
    schedules(&mut out, &figures.schedules, now);
    rest(&mut out, &figures);
    if process {
        out.family(
            "vmtwin_process_resident_memory_bytes",
            "Memory of the daemon.",
        );
        out.sample(&[], resident_bytes()?);
    }
    Ok(out.text)
}

/// The text, family by family.
#[derive(Default)]
struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a family of gauges.
    fn family(&mut self, name: &'static str, help: &str) {
        self.name = name;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    /// Adds a sample to the family.
    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let pairs: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = match pairs.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", pairs.join(",")),
        };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }

    /// A family with a sample for each that has a value.
    fn each<'a, T: 'a>(
        &mut self,
        (name, help): (&'static str, &str),
        label: &str,
        all: impl IntoIterator<Item = &'a T>,
        value: impl Fn(&'a T) -> Option<(&'a str, f64)>,
    ) {
        self.family(name, help);
        for (text, value) in all.into_iter().filter_map(value) {
            self.sample(&[(label, text)], value);
        }
    }
}

/// A label's value: names are others' texts.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_LABEL_CHARS) {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn seconds(at: OffsetDateTime) -> f64 {
    at.unix_timestamp() as f64
}

fn guests(out: &mut Exposition, all: &[GuestFigures], now: OffsetDateTime) {
    type Value = fn(&GuestFigures) -> Option<f64>;
    let families: [(&'static str, &str, Value); 9] = [
        (
            "vmtwin_guest_last_backup_timestamp_seconds",
            "The point of the latest good backup.",
            |g| g.last.as_ref().map(|last| seconds(last.time)),
        ),
        (
            "vmtwin_guest_last_backup_pause_seconds",
            "How long the guest stood still for it.",
            |g| Some(g.last.as_ref()?.report["pause_ms"].as_f64()? / 1000.0),
        ),
        (
            "vmtwin_guest_last_backup_read_bytes",
            "What it read of the guest.",
            |g| g.last.as_ref().map(|last| last.bytes_read as f64),
        ),
        (
            "vmtwin_guest_last_backup_new_bytes",
            "What of it the repository did not have.",
            |g| g.last.as_ref().map(|last| last.bytes_new as f64),
        ),
        (
            "vmtwin_guest_last_backup_stored_bytes",
            "What that takes in the repository.",
            |g| g.last.as_ref().map(|last| last.bytes_stored as f64),
        ),
        (
            "vmtwin_guest_has_backup",
            "Whether the guest has a good backup at all.",
            |g| Some(flag(g.last.is_some())),
        ),
        ("vmtwin_guest_snapshots", "Snapshots of the guest.", |g| {
            Some(g.snapshots as f64)
        }),
        (
            "vmtwin_guest_backup_failing",
            "Whether the latest backup that ended failed.",
            |g| Some(flag(g.failing)),
        ),
        (
            "vmtwin_guest_backup_running",
            "Whether a backup of the guest runs.",
            |g| Some(flag(g.running)),
        ),
    ];
    for (name, help, value) in families {
        out.each((name, help), "vm", all, |g| {
            Some((g.name.as_str(), value(g)?))
        });
    }
    let age = (
        "vmtwin_guest_last_backup_age_seconds",
        "How old the latest good backup is.",
    );
    out.each(age, "vm", all, |g| {
        let age = (now - g.last.as_ref()?.time).whole_seconds().max(0);
        Some((g.name.as_str(), age as f64))
    });
    out.family(
        "vmtwin_guest_last_backup_consistency",
        "1, with the promise that the latest good backup keeps.",
    );
    for guest in all {
        if let Some(last) = &guest.last {
            let consistency = ("consistency", last.consistency.as_str());
            out.sample(&[("vm", &guest.name), consistency], 1.0);
        }
    }
}

fn schedules(out: &mut Exposition, all: &[ScheduleFigures], now: OffsetDateTime) {
    let name = |one: &'_ ScheduleFigures| one.schedule.name.clone();
    let enabled = ("vmtwin_schedule_enabled", "Whether it is followed.");
    out.each(enabled, "schedule", all, |one| {
        Some((one.schedule.name.as_str(), flag(one.schedule.enabled)))
    });
    let next = (
        "vmtwin_schedule_next_due_timestamp_seconds",
        "When it is due next.",
    );
    out.each(next, "schedule", all, |one| {
        let spec = Spec::of(&one.schedule).ok()?;
        let due = spec.next_due(one.schedule.created_at, now).ok()??;
        let followed = one.schedule.enabled.then_some(seconds(due))?;
        Some((one.schedule.name.as_str(), followed))
    });
    let overdue = (
        "vmtwin_schedule_overdue_seconds",
        "How long its latest due time has waited to be begun; 0 if it was.",
    );
    out.each(overdue, "schedule", all, |one| {
        Some((one.schedule.name.as_str(), overdue_s(one, now)?))
    });
    let last = (
        "vmtwin_schedule_last_due_timestamp_seconds",
        "The latest due time that something was done for, or noted as missed.",
    );
    out.each(last, "schedule", all, |one| {
        let (due, _) = one.last.as_ref()?;
        Some((one.schedule.name.as_str(), seconds(*due)))
    });
    out.family(
        "vmtwin_schedule_last_outcome",
        "1, with how its latest due time went: the worst of its parts.",
    );
    for one in all {
        if let Some((_, parts)) = &one.last {
            let outcome = worst(parts).map_or("running", RunOutcome::as_str);
            out.sample(&[("schedule", &name(one)), ("outcome", outcome)], 1.0);
        }
    }
    out.family(
        "vmtwin_schedule_runs",
        "Parts of its runs in the last 400 days, by how they ended.",
    );
    for one in all {
        for (outcome, count) in &one.runs {
            let outcome = outcome.map_or("running", RunOutcome::as_str);
            let labels = [("schedule", name(one)), ("outcome", outcome.to_owned())];
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            out.sample(&labels, *count as f64);
        }
    }
}

fn overdue_s(one: &ScheduleFigures, now: OffsetDateTime) -> Option<f64> {
    let spec = Spec::of(&one.schedule).ok()?;
    let due = spec.latest_due(one.schedule.created_at, now).ok()?;
    let begun = one.last.as_ref().map(|(at, _)| *at);
    let waits = due.filter(|due| one.schedule.enabled && begun.is_none_or(|at| at < *due));
    let begins = waits.map(|due| spec.begins(&one.schedule.name, due));
    let seconds = begins.map_or(0, |begins| (now - begins).whole_seconds().max(0));
    Some(seconds as f64)
}

fn rest(out: &mut Exposition, figures: &Figures) {
    out.family("vmtwin_jobs", "Jobs of the catalog, by kind and state.");
    for (kind, state, count) in &figures.jobs {
        let labels = [("kind", kind.as_str()), ("state", state.as_str())];
        out.sample(&labels, *count as f64);
    }
    let snapshots = (
        "vmtwin_repository_snapshots",
        "Snapshots of the repository, by the catalog.",
    );
    out.each(snapshots, "repository", &figures.repositories, |one| {
        Some((one.0.as_str(), one.1 as f64))
    });
    let stored = (
        "vmtwin_repository_stored_bytes",
        "What its snapshots added to the repository when they were made.",
    );
    out.each(stored, "repository", &figures.repositories, |one| {
        Some((one.0.as_str(), one.2 as f64))
    });
    let nodes = (
        "vmtwin_node_last_seen_timestamp_seconds",
        "When a node of the cluster said last that it is there.",
    );
    out.each(nodes, "node", &figures.nodes, |one| {
        Some((one.0.as_str(), seconds(one.1)))
    });
    out.family(
        "vmtwin_notify_messages_waiting",
        "Notifications that are not delivered yet.",
    );
    out.sample(&[], figures.messages_waiting as f64);
    out.family(
        "vmtwin_notify_messages_given_up",
        "Notifications of the last 30 days that were given up.",
    );
    out.sample(&[], figures.messages_given_up as f64);
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let kib = kib.context("/proc/self/status is not understood")?;
    Ok((kib * 1024) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes().unwrap() > 1e5);
    }

    #[test]
    fn names_cannot_break_the_format() {
        let mut out = Exposition::default();
        out.family("vmtwin_x", "Help.");
        let long = "x".repeat(1000);
        out.sample(&[("vm", "a\"b\\c\nd"), ("w", &long)], 1.5);
        let lines: Vec<&str> = out.text.lines().collect();
        assert_eq!(lines.len(), 3, "{}", out.text);
        assert!(lines[2].starts_with(r#"vmtwin_x{vm="a\"b\\c\nd",w="xxx"#));
        assert!(lines[2].len() < 300 && lines[2].ends_with("\"} 1.5"));
    }
}
