//! `vmtwin prune`, `check`, `copy`, `stats`: upkeep of the repository. What is forgotten: `forget.rs`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use vmtwin_repository::{
    CheckReport, Error, IngestOptions, Location, Progress, PruneOptions, PruneReport, Repository,
    Snapshot,
};

use crate::cancel::Cancel;
use crate::cli::{CheckArgs, CopyArgs, PruneArgs};
use crate::home::{Home, password_of_command, read_password};
use crate::ui::{BarProgress, Ui, bytes, table};

pub(super) const EXIT_WARNINGS: i32 = 3;
const EXIT_FAILED: i32 = 1;

/// What the commands here work with.
pub(crate) struct Upkeep<'a> {
    pub(crate) home: &'a Home,
    pub(crate) ui: &'a Ui,
    pub(crate) cancel: &'a Cancel,
}

#[derive(Debug, Serialize)]
pub(super) struct PruneJson {
    dry_run: bool,
    packs_kept: usize,
    packs_repacked: usize,
    packs_removed: usize,
    bytes_used: u64,
    bytes_unused: u64,
    bytes_repacked: u64,
    bytes_freed: u64,
    /// Who has a lock, where therefore nothing was removed.
    waits_for: Option<String>,
}

impl PruneJson {
    pub(super) fn new(report: &PruneReport, dry_run: bool) -> Self {
        Self {
            dry_run,
            packs_kept: report.packs_kept,
            packs_repacked: report.packs_repacked,
            packs_removed: report.packs_removed,
            bytes_used: report.bytes_used,
            bytes_unused: report.bytes_unused,
            bytes_repacked: report.bytes_repacked,
            bytes_freed: report.bytes_freed,
            waits_for: report.waits_for.clone(),
        }
    }

    pub(super) fn text(&self) -> String {
        let would = if self.dry_run { "would be " } else { "" };
        let mut text = format!(
            "{} used, {} unused; packs: {} kept, {} repacked, {} {would}removed; {} {would}freed",
            bytes(self.bytes_used),
            bytes(self.bytes_unused),
            self.packs_kept,
            self.packs_repacked,
            self.packs_removed,
            bytes(self.bytes_freed)
        );
        if let Some(who) = &self.waits_for {
            text.push_str(&format!(
                "\nnothing was removed: {who}\n  run vmtwin prune again then, or with --wait"
            ));
        }
        text
    }

    pub(super) fn code(&self) -> i32 {
        match self.waits_for {
            Some(_) => EXIT_WARNINGS,
            None => 0,
        }
    }
}

pub(super) fn vm_of(snapshot: &Snapshot) -> Option<String> {
    snapshot.tag("vm").map(str::to_owned)
}

pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

impl Upkeep<'_> {
    fn progress(&self, label: &str) -> BarProgress<'_> {
        BarProgress {
            bar: self.ui.spinner(label),
            cancel: self.cancel,
        }
    }

    pub(super) fn with<T>(&self, label: &str, work: impl FnOnce(&dyn Progress) -> T) -> T {
        let progress = self.progress(label);
        let done = work(&progress);
        progress.bar.finish_and_clear();
        done
    }

    /// Removes what no snapshot needs.
    pub(crate) fn prune(&self, args: &PruneArgs) -> Result<i32> {
        let repository = self.home.repository()?;
        let options = PruneOptions {
            max_unused_percent: args.max_unused,
            dry_run: args.dry_run,
            wait: Duration::from_secs(args.wait_s),
        };
        let report = self.with("pruning", |progress| repository.prune(&options, progress));
        let report = match report {
            Err(error @ Error::Damaged { .. }) => {
                return Err(error).context("nothing was pruned; run: vmtwin check");
            }
            other => PruneJson::new(&other?, args.dry_run),
        };
        self.ui.result(&report, || report.text())?;
        Ok(report.code())
    }

    /// Checks, and repairs the index where asked to.
    pub(crate) fn check(&self, args: &CheckArgs) -> Result<i32> {
        let repository = self.home.repository()?;
        let percent = args.read_data.unwrap_or(0.0);
        let repaired = match args.repair {
            true => Some(self.with("repairing the index", |progress| {
                repository.repair_index(percent > 0.0, progress)
            })?),
            false => None,
        };
        let report = self.with("checking", |progress| repository.check(percent, progress))?;
        let document = check_json(&report, repaired.as_ref())?;
        self.ui.result(&document, || check_text(&report))?;
        Ok(if report.is_good() { 0 } else { EXIT_FAILED })
    }

    /// Copies snapshots to another repository.
    pub(crate) fn copy(&self, args: &CopyArgs) -> Result<i32> {
        let source = self.home.repository()?;
        let location = Location::parse(&args.to)?;
        let password = match (&args.to_password_file, &args.to_password_command) {
            (Some(file), _) => read_password(file)?,
            (None, Some(command)) => password_of_command(command)?,
            (None, None) => match std::env::var("VMTWIN_TO_PASSWORD") {
                Ok(text) => vmtwin_repository::Password::new(text),
                Err(_) => bail!(
                    "no password for {location}: set VMTWIN_TO_PASSWORD, or give \
                     --to-password-file or --to-password-command"
                ),
            },
        };
        let target = Repository::open(&location, &password)
            .with_context(|| format!("cannot open the repository {location}"))?;
        let mut wanted = Vec::new();
        if args.ids.is_empty() {
            let all = source.snapshots()?.snapshots.into_iter();
            let of_vm = |s: &Snapshot| match &args.vm {
                Some(vm) => s.tag("vm") == Some(vm),
                None => s.tag("vm").is_some(),
            };
            wanted.extend(all.filter(of_vm));
        }
        for id in &args.ids {
            wanted.push(source.snapshot(id)?);
        }
        let options = IngestOptions::default();
        let copied = self.with("copying", |progress| {
            source.copy_to(&target, &wanted, &options, progress)
        })?;
        let rows: Vec<serde_json::Value> = copied
            .iter()
            .map(|c| {
                serde_json::json!({"id": c.id, "copy": c.copy, "skipped": c.skipped,
                    "bytes_new": c.bytes_new, "bytes_stored": c.bytes_stored})
            })
            .collect();
        self.ui.result(&rows, || {
            let skipped = copied.iter().filter(|c| c.skipped).count();
            let stored = copied.iter().map(|c| c.bytes_stored).sum();
            format!(
                "{} snapshots copied, {} stored; {skipped} were there",
                copied.len() - skipped,
                bytes(stored)
            )
        })?;
        Ok(0)
    }

    /// Shows what snapshots and the repository take.
    pub(crate) fn stats(&self, vm: Option<&str>) -> Result<i32> {
        let repository = self.home.repository()?;
        let mut usage = self.with("measuring", |progress| repository.usage(&vm_of, progress))?;
        if let Some(vm) = vm {
            usage.groups.retain(|(name, _)| name == vm);
            if usage.groups.is_empty() {
                bail!("no snapshots of {vm:?}; see: vmtwin snapshot list");
            }
        }
        let mut vms = Vec::new();
        let mut cells = Vec::new();
        for (name, list) in &usage.groups {
            let logical: u64 = list.iter().map(|s| s.logical_bytes).sum();
            let unique: u64 = list.iter().map(|s| s.added_bytes).sum();
            let stored: u64 = list.iter().map(|s| s.added_stored_bytes).sum();
            let growth = list.last().map_or(0, |s| s.added_stored_bytes);
            let compression = unique as f64 / stored.max(1) as f64;
            let mut snapshots = Vec::new();
            for s in list {
                snapshots.push(serde_json::json!({
                    "id": s.snapshot.id, "time": s.snapshot.time.format(&Rfc3339)?,
                    "logical_bytes": s.logical_bytes, "added_bytes": s.added_bytes,
                    "added_stored_bytes": s.added_stored_bytes,
                }));
            }
            cells.push(vec![
                name.clone(),
                list.len().to_string(),
                bytes(logical),
                bytes(unique),
                bytes(stored),
                format!("{compression:.2}"),
                bytes(growth),
            ]);
            vms.push(serde_json::json!({
                "vm": name, "logical_bytes": logical, "unique_bytes": unique,
                "stored_bytes": stored, "compression": compression, "snapshots": snapshots,
            }));
        }
        let document = serde_json::json!({
            "vms": vms,
            "repository": {
                "packs": usage.packs, "pack_bytes": usage.pack_bytes,
                "index_files": usage.index_files, "used_blobs": usage.used_blobs,
                "used_bytes": usage.used_bytes, "used_stored_bytes": usage.used_stored_bytes,
                "unused_bytes": usage.unused_bytes,
            },
        });
        self.ui.result(&document, || {
            let head = [
                "VM",
                "SNAPSHOTS",
                "LOGICAL",
                "UNIQUE",
                "STORED",
                "RATIO",
                "LAST ADDED",
            ];
            format!(
                "{}\nrepository: {} in {} packs, {} unused",
                table(&head, &cells),
                bytes(usage.pack_bytes),
                usage.packs,
                bytes(usage.unused_bytes)
            )
        })?;
        Ok(0)
    }
}

fn check_json(
    report: &CheckReport,
    repaired: Option<&vmtwin_repository::RepairReport>,
) -> Result<serde_json::Value> {
    let mut hurt = Vec::new();
    for h in &report.hurt {
        let snapshot = h.snapshot.as_ref();
        let time = snapshot.map(|s| s.time.format(&Rfc3339)).transpose()?;
        hurt.push(serde_json::json!({
            "id": h.id, "vm": snapshot.and_then(vm_of), "time": time,
            "disks": disks(&h.paths), "paths": h.paths,
        }));
    }
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|p| serde_json::json!({"object": p.object, "reason": p.reason}))
        .collect();
    let repaired = repaired.map(|r| {
        serde_json::json!({
            "locks_removed": r.locks_removed, "index_files_removed": r.index_files_removed,
            "packs_found": r.packs_found, "packs_dropped": r.packs_dropped,
            "blobs_saved": r.blobs_saved, "blobs_lost": r.blobs_lost,
        })
    });
    Ok(serde_json::json!({
        "ok": report.is_good(), "problems": problems, "hurt": hurt, "notes": report.notes,
        "snapshots": report.snapshots, "packs": report.packs, "packs_read": report.packs_read,
        "bytes_read": report.bytes_read, "repaired": repaired,
    }))
}

fn disks(paths: &[String]) -> Vec<&str> {
    let disk = |path: &'_ String| path.strip_prefix("/disks/").map(str::len);
    let named = |path| disk(path).map(|len| &path[path.len() - len..]);
    paths.iter().filter_map(named).collect()
}

fn check_text(report: &CheckReport) -> String {
    let mut lines = Vec::new();
    for problem in &report.problems {
        lines.push(format!("damaged: {}: {}", problem.object, problem.reason));
    }
    for h in &report.hurt {
        let paths = h.paths.join(", ");
        lines.push(match &h.snapshot {
            None => format!("hurt: snapshot {}: all of it", h.id),
            Some(s) => format!(
                "hurt: snapshot {} of {} at {}: {paths}",
                short(&h.id),
                s.tag("vm").unwrap_or("no guest"),
                s.time
            ),
        });
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    let (snapshots, packs) = (report.snapshots, report.packs);
    if report.is_good() {
        lines.push(format!(
            "no errors: {snapshots} snapshots, {packs} packs, {} of them read",
            report.packs_read
        ));
    } else {
        lines.push(format!(
            "{} of {snapshots} snapshots cannot be restored whole. What to do: keep a copy of the \
             repository, run vmtwin check --repair --read-data, then back up the guests again in \
             full; what can be read again heals the old snapshots too. Forget those that stay hurt.",
            report.hurt.len()
        ));
    }
    lines.join("\n")
}
