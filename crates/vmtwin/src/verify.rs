//! The verify recipe: proves that a snapshot can be restored, by reading all of it or by booting it.
//!
//! The result is kept with the snapshot's row in the catalog.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{JobId, JobKind, NewJob, Outcome};
use vmtwin_hypervisor::twin::{Life, LifeOptions, Sign, Twin, TwinError};
use vmtwin_repository::{Repository, Snapshot};

use crate::backup::Cx;
use crate::cli::VerifyArgs;
use crate::command::restore::Bars;
use crate::command::snapshot::Detail;
use crate::isolated::Isolated;
use crate::restore::{RestoreReport, read_all};

/// Resets that a machine may make while it boots from its disks.
const BOOT_RESETS: u32 = 2;

/// What a verification found.
#[derive(Debug, Serialize)]
pub(crate) struct VerifyReport {
    /// The snapshot.
    pub(crate) snapshot: String,
    /// Its guest.
    pub(crate) vm: String,
    /// When it was verified, RFC 3339.
    pub(crate) time: String,
    /// It can be restored; where it was booted, it came up.
    pub(crate) ok: bool,
    /// It was booted.
    pub(crate) booted: bool,
    /// Bytes that were read, where it was read.
    pub(crate) bytes: Option<u64>,
    /// By which sign it came up.
    pub(crate) sign: Option<Sign>,
    /// Last picture of its screen.
    pub(crate) screenshot: Option<PathBuf>,
    /// Time it took.
    pub(crate) seconds: f64,
    /// Why it is not good.
    pub(crate) error: Option<String>,
}

impl VerifyReport {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let id = &self.snapshot[..self.snapshot.len().min(8)];
        let what = match (&self.error, self.sign, self.bytes) {
            (Some(error), ..) => format!("NOT GOOD: {error}"),
            (None, Some(sign), _) => {
                let sign = match sign {
                    Sign::Expected => "its console showed what was expected",
                    Sign::Agent => "its guest agent answered",
                    Sign::Console => "its console speaks",
                    Sign::Screen => "its screen rests; look at the picture",
                };
                format!("came up: {sign}")
            }
            (None, None, bytes) => format!(
                "good: {} read, every chunk compared with its hash",
                crate::ui::bytes(bytes.unwrap_or(0))
            ),
        };
        let picture = self.screenshot.as_ref();
        let picture = picture.map_or(String::new(), |path| {
            format!("; screen: {}", path.display())
        });
        format!("{} {id}: {what} ({:.1} s){picture}", self.vm, self.seconds)
    }
}

/// Verifies the snapshot that `args` names.
pub(crate) fn run(cx: &Cx<'_>, args: &VerifyArgs) -> Result<VerifyReport> {
    let begun = Instant::now();
    let repository = cx.home.repository()?;
    let snapshot = repository.snapshot(&args.id)?;
    let mut report = VerifyReport {
        snapshot: snapshot.id.clone(),
        vm: snapshot.tag("vm").unwrap_or_default().to_owned(),
        time: OffsetDateTime::now_utc().format(&Rfc3339)?,
        ok: false,
        booted: args.boot,
        bytes: None,
        sign: None,
        screenshot: None,
        seconds: 0.0,
        error: None,
    };
    let new = NewJob {
        kind: JobKind::Verify,
        vm_id: None,
    };
    let job = cx.db.run(async |c| c.start_job(new).await)?;
    let outcome = match args.boot {
        true => boot(cx, args, &job, &repository, &snapshot, &mut report),
        false => read(cx, &repository, &snapshot, &mut report),
    };
    report.seconds = begun.elapsed().as_secs_f64();
    report.ok = outcome.is_ok();
    report.error = outcome.err().map(|error| format!("{error:#}"));
    finish(cx, &job, &repository, &report)?;
    Ok(report)
}

fn read(
    cx: &Cx<'_>,
    repository: &Repository,
    snapshot: &Snapshot,
    report: &mut VerifyReport,
) -> Result<()> {
    let bars = Bars::new(cx.ui);
    let cancelled = || cx.cancel.is_set();
    report.bytes = Some(read_all(repository, snapshot, &bars, &cancelled)?);
    Ok(())
}

fn boot(
    cx: &Cx<'_>,
    args: &VerifyArgs,
    job: &JobId,
    repository: &Repository,
    snapshot: &Snapshot,
    report: &mut VerifyReport,
) -> Result<()> {
    let stored = Detail::read(repository, snapshot)?;
    let isolated = Isolated {
        cx,
        job,
        repository,
        snapshot,
        stored: &stored,
        scratch: args.scratch.as_deref(),
        accel: args.accel.clone(),
    };
    let resets = match stored.content.memory {
        Some(_) => 0,
        None => BOOT_RESETS,
    };
    isolated.with(|twin, restored| look(cx, args, twin, restored, resets, report))
}

/// Watches it come up, and keeps the picture of its screen.
fn look(
    cx: &Cx<'_>,
    args: &VerifyArgs,
    mut twin: Twin,
    restored: &RestoreReport,
    resets: u32,
    report: &mut VerifyReport,
) -> Result<()> {
    let running = restored.running.as_ref().context("it does not run")?;
    let spinner = cx.ui.spinner("booting, isolated");
    let options = LifeOptions {
        console_log: running.console_log.clone(),
        expect: args.expect.clone(),
        dir: restored.dir.clone(),
        settle: Duration::from_secs(args.settle_s),
        limit: Duration::from_secs(args.limit_s),
        resets,
    };
    let outcome = twin.comes_up(&options, &|| cx.cancel.is_set());
    spinner.finish_and_clear();
    let picture = match &outcome {
        Ok(Life { screenshot, .. }) | Err(TwinError::NoSign { screenshot, .. }) => screenshot,
        Err(_) => &None,
    };
    if let Some(picture) = picture {
        let kept = cx
            .home
            .pictures_dir()?
            .join(format!("{}.png", report.snapshot));
        std::fs::copy(picture, &kept)
            .with_context(|| format!("cannot keep the picture {}", kept.display()))?;
        report.screenshot = Some(kept);
    }
    report.sign = Some(outcome?.sign);
    Ok(())
}

/// Ends the job, and keeps the result with the snapshot's row, where the catalog has one.
fn finish(cx: &Cx<'_>, job: &JobId, repository: &Repository, report: &VerifyReport) -> Result<()> {
    let document = serde_json::to_value(report)?;
    let outcome = match &report.error {
        None => Outcome::Done,
        Some(error) => Outcome::Failed {
            error: error.clone(),
        },
    };
    cx.db
        .run(async |c| c.finish_job(job, outcome, Some(&document)).await)?;
    let rows = cx
        .db
        .run(async |c| c.snapshots_by_prefix(&report.snapshot).await)?;
    let ours = rows
        .into_iter()
        .find(|row| row.repository_id == repository.id());
    if let Some(mut row) = ours
        && let Some(fields) = row.report.as_object_mut()
    {
        fields.insert("verified".into(), document);
        cx.db.run(async |c| c.upsert_snapshot(&row).await)?;
    }
    Ok(())
}
