//! Backups of the cluster's configuration when that has changed, and has stood still since.
//!
//! ```text
//!   each node, now and then: fingerprint ─► another one? ─► setting: fingerprint, since when
//!   each node: the latest of all nodes' changes + the time to settle ─► due ─► a row, as ever
//! ```
//! The due time is made of what all nodes see, so that they claim the same row, and one backup is made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::backup::Cx;
use crate::cluster;

/// Between two looks.
const REST: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// What the settings begin with; then comes the id of a node.
const SETTING: &str = "configuration.changed.";

/// The configuration of a node, and when it was seen first.
#[derive(Serialize, Deserialize)]
struct Seen {
    fingerprint: String,
    #[serde(with = "time::serde::timestamp")]
    since: OffsetDateTime,
}

/// Looks at this node, now and then, until the end; only while a schedule needs it.
pub(super) fn watch(cx: &Cx<'_>, ended: &AtomicBool) {
    let rest = rest();
    let mut looked: Option<Instant> = None;
    while !ended.load(Ordering::Relaxed) {
        if looked.is_none_or(|at| at.elapsed() >= rest) {
            looked = Some(Instant::now());
            if let Err(error) = look(cx) {
                let text = "whether the configuration has changed is not known";
                cx.ui.note(&format!("warning: {text}: {error:#}"));
            }
        }
        thread::sleep(POLL);
    }
}

/// Tests do not wait so long.
fn rest() -> Duration {
    let given = std::env::var("VMTWIN_LOOK_S").ok();
    let given = given.filter(|_| cfg!(debug_assertions));
    let seconds = given.and_then(|text| text.parse().ok());
    seconds.map_or(REST, Duration::from_secs)
}

fn look(cx: &Cx<'_>) -> Result<()> {
    let schedules = cx.db.run(async |c| c.schedules().await)?;
    let is_wanted = |schedule: &vmtwin_catalog::Schedule| {
        schedule.enabled && super::Spec::of(schedule).is_ok_and(|spec| spec.is_on_change())
    };
    if !schedules.iter().any(is_wanted) {
        return Ok(());
    }
    let Some((node, fingerprint)) = cluster::fingerprint(cx.home, cx.db)? else {
        return Ok(());
    };
    let key = format!("{SETTING}{node}");
    let known = cx.db.run(async |c| c.setting(&key).await)?;
    let known = known.map(|text| seen(&text)).transpose()?;
    if known.is_some_and(|known| known.fingerprint == fingerprint) {
        return Ok(());
    }
    let since = OffsetDateTime::now_utc();
    let text = serde_json::to_string(&Seen { fingerprint, since })?;
    Ok(cx.db.run(async |c| c.set_setting(&key, &text).await)?)
}

fn seen(text: &str) -> Result<Seen> {
    serde_json::from_str(text).context("what the catalog says of changes is not valid")
}

/// When a backup is due that waits until all has stood still for `settle_s`. That a schedule was made
/// counts as a change.
pub(super) fn latest_due(
    cx: &Cx<'_>,
    created: OffsetDateTime,
    settle_s: u64,
    now: OffsetDateTime,
) -> Result<Option<OffsetDateTime>> {
    let settings = cx.db.run(async |c| c.settings().await)?;
    let changes = settings.iter().filter(|(key, _)| key.starts_with(SETTING));
    let mut latest = created.replace_nanosecond(0)?;
    for (_, text) in changes {
        latest = latest.max(seen(text)?.since);
    }
    let due = latest + Duration::from_secs(settle_s);
    Ok((due <= now).then_some(due))
}
