//! `vmtwin snapshot forget`, `forgotten`, `keep`: which snapshots go, and when.
//!
//! ```text
//!   forget ─► rules, ids ─► no delay: removed
//!                           delay:    a row with the time ─► due: removed, by the next forget or the timer
//!                                        └─ keep: taken back
//! ```
//! With a deletion delay who may forget cannot erase: the delay is an option of the host, refused over
//! the API ([`crate::api`]), and there is time to take it back.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::Deletion;
use vmtwin_repository::{Error, KeepRules, PruneOptions, Repository, Snapshot};

use super::upkeep::{EXIT_WARNINGS, PruneJson, Upkeep, short, vm_of};
use crate::cli::{ForgetArgs, KeepArgs};
use crate::db::Db;
use crate::ui::table;

/// One snapshot and what becomes of it.
#[derive(Debug, Serialize)]
struct Decision {
    id: String,
    vm: String,
    host: String,
    time: String,
    keep: bool,
    /// Rules that keep it.
    reasons: Vec<&'static str>,
    /// When it may be removed, where that is not now.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_after: Option<String>,
}

#[derive(Debug, Serialize)]
struct ForgetReport {
    dry_run: bool,
    kept: usize,
    removed: usize,
    /// Those that stay until the delay is over.
    waiting: usize,
    snapshots: Vec<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<PruneJson>,
    warnings: Vec<String>,
}

/// A snapshot that is to be removed.
#[derive(Debug, Serialize)]
struct Forgotten {
    id: String,
    vm: String,
    time: String,
    asked_at: String,
    removed_after: String,
}

impl Upkeep<'_> {
    /// Forgets snapshots: those named, those that no rule keeps, or those whose delay is over.
    pub(crate) fn forget(&self, args: &ForgetArgs) -> Result<i32> {
        let rules = args.rules()?;
        if args.ids.is_empty() && rules.is_empty() && !args.due {
            bail!(
                "nothing says what to forget: name snapshots by id, or give rules of what stays, \
                 such as --keep-daily 7 --keep-weekly 4; --dry-run shows what would go"
            );
        }
        let repository = self.home.repository()?;
        let mut decisions = match (args.due, args.ids.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => decide(&repository, args.vm.as_deref(), &rules)?,
            (false, false) => named(&repository, &args.ids)?,
        };
        if args.ids.is_empty() && !args.force {
            refuse_all(&decisions)?;
        }
        let gone = self.gone(&repository, args, &mut decisions)?;
        let waiting = decisions.iter().filter(|d| d.removed_after.is_some());
        let mut report = ForgetReport {
            dry_run: args.dry_run,
            kept: decisions.iter().filter(|d| d.keep).count(),
            removed: gone.len(),
            waiting: waiting.count(),
            snapshots: decisions,
            prune: None,
            warnings: Vec::new(),
        };
        let mut code = 0;
        if !args.dry_run && !gone.is_empty() {
            repository.remove_snapshots(&gone)?;
            if let Err(error) = self.forget_in_catalog(&repository, &gone) {
                report.warnings.push(format!("the catalog: {error:#}"));
                code = EXIT_WARNINGS;
            }
        }
        if args.prune && !args.dry_run {
            let prune = self.with("pruning", |progress| {
                repository.prune(&PruneOptions::default(), progress)
            })?;
            let prune = PruneJson::new(&prune, false);
            code = code.max(prune.code());
            report.prune = Some(prune);
        }
        for warning in &report.warnings {
            self.ui.note(&format!("warning: {warning}"));
        }
        self.ui.result(&report, || forget_text(&report))?;
        Ok(code)
    }

    /// The ids to remove now. With a delay the others get their time, which the decisions then say;
    /// what was put off before, and is due, goes too.
    fn gone(
        &self,
        repository: &Repository,
        args: &ForgetArgs,
        decisions: &mut Vec<Decision>,
    ) -> Result<Vec<String>> {
        let wanted = |all: &[Decision]| -> Vec<String> {
            let gone = all.iter().filter(|d| !d.keep);
            gone.map(|d| d.id.clone()).collect()
        };
        let Some(delay) = self.home.deletion_delay().filter(|_| !args.due) else {
            if args.due {
                *decisions = self.due(repository)?;
            }
            return Ok(wanted(decisions));
        };
        let (db, id) = (Db::open(self.home)?, repository.id());
        let now = OffsetDateTime::now_utc();
        let ids = wanted(decisions);
        if !args.dry_run {
            db.run(async |c| c.put_off_deletion(&id, &ids, now + delay).await)?;
        }
        let waiting = db.run(async |c| c.deletions(Some(&id)).await)?;
        for decision in decisions.iter_mut().filter(|d| !d.keep) {
            let row = waiting.iter().find(|one| one.snapshot_id == decision.id);
            let due = row.map_or(now + delay, |one| one.due_at);
            decision.removed_after = Some(due.format(&Rfc3339)?);
        }
        let due: Vec<Decision> = self.due(repository)?;
        decisions.retain(|d| !due.iter().any(|one| one.id == d.id));
        let gone = wanted(&due);
        decisions.extend(due);
        Ok(gone)
    }

    /// The snapshots whose delay is over. What is noted of others that are gone is dropped.
    fn due(&self, repository: &Repository) -> Result<Vec<Decision>> {
        let (db, id) = (Db::open(self.home)?, repository.id());
        let waiting = db.run(async |c| c.deletions(Some(&id)).await)?;
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let all = repository.snapshots()?;
        let damaged = all.damaged.iter().map(|one| one.id.as_str());
        let snapshots = all.snapshots.iter().map(|one| one.id.as_str());
        let there: HashSet<&str> = snapshots.chain(damaged).collect();
        let is_gone = |one: &&Deletion| !there.contains(one.snapshot_id.as_str());
        let gone: Vec<String> = waiting
            .iter()
            .filter(is_gone)
            .map(|one| one.snapshot_id.clone())
            .collect();
        db.run(async |c| c.drop_deletions(&id, &gone).await)?;
        let now = OffsetDateTime::now_utc();
        let due = waiting
            .iter()
            .filter(|one| !is_gone(one) && one.due_at <= now);
        let ids: Vec<String> = due.map(|one| one.snapshot_id.clone()).collect();
        named(repository, &ids)
    }

    /// Lists the snapshots that are to be removed.
    pub(crate) fn forgotten(&self) -> Result<i32> {
        let repository = self.home.repository()?;
        let (db, id) = (Db::open(self.home)?, repository.id());
        let waiting = db.run(async |c| c.deletions(Some(&id)).await)?;
        let snapshots = repository.snapshots()?.snapshots;
        let mut rows = Vec::new();
        for one in &waiting {
            let Some(snapshot) = snapshots.iter().find(|s| s.id == one.snapshot_id) else {
                continue;
            };
            rows.push(Forgotten {
                id: snapshot.id.clone(),
                vm: vm_of(snapshot).unwrap_or_default(),
                time: snapshot.time.format(&Rfc3339)?,
                asked_at: one.asked_at.format(&Rfc3339)?,
                removed_after: one.due_at.format(&Rfc3339)?,
            });
        }
        self.ui.result(&rows, || forgotten_text(&rows))?;
        Ok(0)
    }

    /// Takes back that snapshots were forgotten.
    pub(crate) fn keep(&self, args: &KeepArgs) -> Result<i32> {
        let repository = self.home.repository()?;
        let (db, id) = (Db::open(self.home)?, repository.id());
        let waiting = db.run(async |c| c.deletions(Some(&id)).await)?;
        let mut ids: Vec<String> = Vec::new();
        for text in &args.ids {
            let snapshot = repository.snapshot(text)?.id;
            if !waiting.iter().any(|one| one.snapshot_id == snapshot) {
                self.ui
                    .note(&format!("{}: was not forgotten", short(&snapshot)));
            }
            ids.push(snapshot);
        }
        if args.all {
            ids.extend(waiting.into_iter().map(|one| one.snapshot_id));
        }
        let kept = db.run(async |c| c.drop_deletions(&id, &ids).await)?;
        self.ui.result(&serde_json::json!({ "kept": kept }), || {
            format!("{kept} snapshots stay")
        })?;
        Ok(0)
    }

    /// The catalog is a cache of the repository: what it does not know is fine.
    fn forget_in_catalog(&self, repository: &Repository, ids: &[String]) -> Result<()> {
        if !self.home.catalog().exists() {
            return Ok(());
        }
        let db = Db::open(self.home)?;
        db.run(async |c| c.drop_deletions(&repository.id(), ids).await)?;
        for id in ids {
            let removed = db.run(async |c| c.remove_snapshot(&repository.id(), id).await);
            match removed {
                Ok(()) | Err(vmtwin_catalog::Error::NoSnapshot { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn decision(snapshot: &Snapshot, keep: bool, reasons: Vec<&'static str>) -> Result<Decision> {
    Ok(Decision {
        id: snapshot.id.clone(),
        vm: vm_of(snapshot).unwrap_or_default(),
        host: snapshot.hostname.clone(),
        time: snapshot.time.format(&Rfc3339)?,
        keep,
        reasons,
        removed_after: None,
    })
}

/// Snapshots by their ids; one whose own file is damaged needs its full id.
fn named(repository: &Repository, ids: &[String]) -> Result<Vec<Decision>> {
    let mut found: BTreeMap<String, Decision> = BTreeMap::new();
    for id in ids {
        let decision = match repository.snapshot(id) {
            Ok(snapshot) => decision(&snapshot, false, Vec::new())?,
            Err(Error::Damaged { .. }) if id.len() == 64 => Decision {
                id: id.clone(),
                vm: String::new(),
                host: String::new(),
                time: String::new(),
                keep: false,
                reasons: Vec::new(),
                removed_after: None,
            },
            Err(error) => return Err(error.into()),
        };
        found.insert(decision.id.clone(), decision);
    }
    Ok(found.into_values().collect())
}

/// Applies the rules to the snapshots of each guest on each host.
fn decide(repository: &Repository, vm: Option<&str>, rules: &KeepRules) -> Result<Vec<Decision>> {
    let mut groups: BTreeMap<(String, String), Vec<Snapshot>> = BTreeMap::new();
    for snapshot in repository.snapshots()?.snapshots {
        if let Some(name) = vm_of(&snapshot)
            && vm.is_none_or(|wanted| wanted == name)
        {
            let key = (name, snapshot.hostname.clone());
            groups.entry(key).or_default().push(snapshot);
        }
    }
    let mut decisions = Vec::new();
    for group in groups.into_values() {
        let times: Vec<_> = group.iter().map(|s| (s.time, s.tags.as_slice())).collect();
        for (snapshot, reasons) in group.iter().zip(rules.apply(&times)) {
            decisions.push(decision(snapshot, !reasons.is_empty(), reasons)?);
        }
    }
    Ok(decisions)
}

fn refuse_all(decisions: &[Decision]) -> Result<()> {
    let lost = |d: &&Decision| {
        !decisions
            .iter()
            .any(|o| o.keep && (&o.vm, &o.host) == (&d.vm, &d.host))
    };
    match decisions.iter().find(lost) {
        Some(d) => bail!(
            "these rules keep no snapshot of {} on {}; add --keep-last 1, or --force to remove all",
            d.vm,
            d.host
        ),
        None => Ok(()),
    }
}

fn forget_text(report: &ForgetReport) -> String {
    let cells: Vec<Vec<String>> = report
        .snapshots
        .iter()
        .map(|d| {
            let time = d.time.get(..19).unwrap_or(&d.time).replace('T', " ");
            let verdict = match (d.keep, &d.removed_after) {
                (true, _) => "keep".to_owned(),
                (false, None) => "remove".to_owned(),
                (false, Some(due)) => format!("remove after {}", minute(due)),
            };
            vec![
                short(&d.id).to_owned(),
                d.vm.clone(),
                d.host.clone(),
                time,
                verdict,
                d.reasons.join(", "),
            ]
        })
        .collect();
    let head = ["ID", "VM", "HOST", "POINT (UTC)", "", "BY RULE"];
    let verb = if report.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    let mut lines = vec![
        table(&head, &cells),
        format!("{} kept, {} {verb}", report.kept, report.removed),
    ];
    if report.waiting > 0 {
        lines.push(format!(
            "{} stay until their time; to take that back: vmtwin snapshot keep ID",
            report.waiting
        ));
    }
    match &report.prune {
        Some(prune) => lines.push(prune.text()),
        None if report.removed > 0 && !report.dry_run => {
            lines.push("to free their space: vmtwin prune".to_owned())
        }
        None => {}
    }
    lines.join("\n")
}

/// A time in a table.
fn minute(time: &str) -> String {
    time.get(..16).unwrap_or(time).replace('T', " ")
}

fn forgotten_text(rows: &[Forgotten]) -> String {
    if rows.is_empty() {
        return "no snapshot is to be removed".to_owned();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let id = short(&row.id).to_owned();
            let times = [&row.time, &row.asked_at, &row.removed_after].map(|time| minute(time));
            [vec![id, row.vm.clone()], times.to_vec()].concat()
        })
        .collect();
    let head = ["ID", "VM", "POINT (UTC)", "FORGOTTEN", "REMOVED AFTER"];
    table(&head, &cells)
}
