//! Is a guest protected? By what its schedules say was due, and what there is.
//!
//! | word | means |
//! |---|---|
//! | `protected` | there is a snapshot from each due time of each of its schedules |
//! | `late` | a due time has passed, and there is no snapshot since |
//! | `failing` | its last backup failed |
//! | `never` | there is no snapshot of it |
//! | `unscheduled` | there are snapshots, and no schedule will make another |

use anyhow::Result;
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{Schedule, Snapshot, Vm};

use crate::timer::Spec;

/// How long a backup may take before its guest counts as late.
const GRACE: Duration = Duration::hours(1);

/// A schedule that is followed, understood.
pub(super) struct Followed {
    pub(super) name: String,
    spec: Spec,
    created_at: OffsetDateTime,
    pub(super) next: Option<OffsetDateTime>,
    latest: Option<OffsetDateTime>,
}

impl Followed {
    /// Those of the catalog that are followed; one that is not understood is left out.
    pub(super) fn all(schedules: &[Schedule], now: OffsetDateTime) -> Vec<Followed> {
        let enabled = schedules.iter().filter(|schedule| schedule.enabled);
        enabled
            .filter_map(|schedule| Followed::new(schedule, now).ok())
            .collect()
    }

    fn new(schedule: &Schedule, now: OffsetDateTime) -> Result<Followed> {
        let spec = Spec::of(schedule)?;
        Ok(Followed {
            name: schedule.name.clone(),
            next: spec.next_due(schedule.created_at, now)?,
            latest: spec.latest_due(schedule.created_at, now)?,
            created_at: schedule.created_at,
            spec,
        })
    }

    pub(super) fn is_of(&self, vm: &Vm) -> bool {
        self.spec.wants(vm)
    }

    /// The due time that has passed with no snapshot since, if there is one.
    fn missed(&self, last: OffsetDateTime, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let window = self.spec.window_s.unwrap_or(0) + self.spec.jitter_s;
        let slack = GRACE + Duration::seconds(i64::try_from(window).unwrap_or(i64::MAX / 2));
        let due = self.latest?;
        let first = self.spec.next_due(self.created_at, last).ok()??;
        (last < due && now - first.min(due) > slack).then_some(due)
    }
}

/// The word, and why.
pub(super) fn of(
    last: Option<&Snapshot>,
    failed: Option<&str>,
    schedules: &[&Followed],
    now: OffsetDateTime,
) -> (&'static str, String) {
    if let Some(error) = failed {
        let error = error.lines().next().unwrap_or("the last backup failed");
        return ("failing", error.to_owned());
    }
    let Some(last) = last else {
        let why = match schedules.is_empty() {
            true => "it was never backed up, and no schedule will do it",
            false => "it was never backed up; its schedule will do it",
        };
        return ("never", why.to_owned());
    };
    if schedules.is_empty() {
        return ("unscheduled", "no schedule backs it up again".to_owned());
    }
    let missed = schedules
        .iter()
        .find_map(|schedule| Some((schedule, schedule.missed(last.time, now)?)));
    if let Some((schedule, due)) = missed {
        let text = due
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        let why = format!(
            "schedule {} was due at {text} and brought nothing",
            schedule.name
        );
        return ("late", why);
    }
    let why = match last.consistency == last.consistency_asked {
        true => "the last backup kept what its schedule asks".to_owned(),
        false => format!(
            "the last backup is {}, although {} was asked for",
            last.consistency, last.consistency_asked
        ),
    };
    ("protected", why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;
    use time::macros::datetime;
    use vmtwin_catalog::{Consistency, ScheduleId, SnapshotState};

    use super::*;

    fn schedule(vms: serde_json::Value) -> Schedule {
        Schedule {
            id: ScheduleId::random().unwrap(),
            name: "nightly".into(),
            spec: json!({
                "when": {"on": "*-*-* 02:30 UTC"}, "host": "h", "vms": vms, "consistency": "crash",
                "or_crash": false, "tags": [], "random_order": false, "jitter_s": 600,
                "parallel": 1, "window_s": null, "catch_up": true, "keep": {}
            }),
            enabled: true,
            created_at: datetime!(2026-11-01 12:00 UTC),
        }
    }

    fn snapshot(time: OffsetDateTime) -> Snapshot {
        Snapshot {
            id: "1a".into(),
            repository_id: "r".into(),
            vm_id: None,
            vm_name: "web".into(),
            time,
            consistency: Consistency::Crash,
            consistency_asked: Consistency::Application,
            bytes_read: 0,
            bytes_new: 0,
            bytes_stored: 0,
            parent: None,
            state: SnapshotState::Complete,
            report: json!({}),
        }
    }

    #[test]
    fn a_guest_is_late_when_a_due_time_brought_nothing() {
        let all = [schedule(json!(null))];
        let word = |last, now| {
            let followed = Followed::all(&all, now);
            let schedules: Vec<&Followed> = followed.iter().collect();
            let last = snapshot(last);
            of(Some(&last), None, &schedules, now).0
        };
        let (second, third) = (
            datetime!(2026-11-02 02:31 UTC),
            datetime!(2026-11-03 02:31 UTC),
        );
        assert_eq!(word(second, datetime!(2026-11-02 20:00 UTC)), "protected");
        // The backup of the night may still run.
        assert_eq!(word(second, third), "protected");
        assert_eq!(word(second, datetime!(2026-11-03 04:00 UTC)), "late");
        // Days later the last due time is just now, and nothing has come since long.
        assert_eq!(word(second, datetime!(2026-11-09 02:31 UTC)), "late");
        assert_eq!(word(third, datetime!(2026-11-03 20:00 UTC)), "protected");
        // By hand in between: nothing was due since.
        let by_hand = datetime!(2026-11-03 09:00 UTC);
        assert_eq!(word(by_hand, datetime!(2026-11-03 20:00 UTC)), "protected");
    }

    #[test]
    fn what_else_can_be_said_of_a_guest() {
        let now = datetime!(2026-11-02 03:00 UTC);
        let last = snapshot(datetime!(2026-11-02 02:31 UTC));
        assert_eq!(of(None, None, &[], now).0, "never");
        assert_eq!(of(Some(&last), None, &[], now).0, "unscheduled");
        let failing = of(Some(&last), Some("no room\nmore"), &[], now);
        assert_eq!(failing, ("failing", "no room".to_owned()));
        let of_others = Followed::all(&[schedule(json!(["db"]))], now);
        let takes = |name| of_others[0].spec.takes(name, &[]);
        assert!(!takes("web") && takes("db"));
        let followed = Followed::all(&[schedule(json!(null))], now);
        let (word, why) = of(Some(&last), None, &[&followed[0]], now);
        assert!(word == "protected" && why.contains("crash"), "{why}");
        let broken = Schedule {
            spec: json!({}),
            ..schedule(json!(null))
        };
        assert!(Followed::all(&[broken], now).is_empty());
    }
}
