//! What a schedule says, as the catalog keeps it, and when it is due.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use vmtwin_calendar::Calendar;
use vmtwin_catalog::{Schedule, Vm, VmRole};

use crate::cli::{Consistency, Fallback, Order, ScheduleAddArgs};
use crate::cluster::bucket;
use crate::twin_args::Settings;

/// Due times longer ago than this are not looked for one by one.
const LOOK_BACK_S: i64 = 400 * 86_400;
/// How late something may begin without having been late: the loop's rests, a busy host.
pub(super) const GRACE_S: i64 = 120;

/// What a schedule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    pub(crate) when: When,
    /// The host that follows it; none: every node of the cluster, each for its own guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,
    /// Guests by name; none: all, or those of the groups.
    pub(crate) vms: Option<Vec<String>>,
    /// Groups of guests; then no guest is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<String>,
    pub(crate) consistency: Consistency,
    pub(crate) or_crash: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) random_order: bool,
    pub(crate) jitter_s: u64,
    pub(crate) parallel: u32,
    pub(crate) window_s: Option<u64>,
    pub(crate) catch_up: bool,
    pub(crate) keep: Keep,
    /// The cluster, and no guests: then `vms` is an empty list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<ClusterBackup>,
}

/// A backup of the cluster's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterBackup {
    /// Where to; none: the home folder's.
    pub(crate) output: Option<PathBuf>,
    /// With secrets, sealed for whom the configuration of the host says that makes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) with_secrets: bool,
}

/// When it is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum When {
    /// A calendar expression.
    On(String),
    /// Seconds from one to the next, from when it was made.
    EveryS(u64),
    /// When the configuration of a node has changed, and that of all has stood still for so many seconds.
    OnChange(u64),
}

/// What stays of each guest's snapshots; all where no number is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Keep {
    pub(crate) last: u32,
    pub(crate) hourly: u32,
    pub(crate) daily: u32,
    pub(crate) weekly: u32,
    pub(crate) monthly: u32,
    pub(crate) yearly: u32,
    pub(crate) prune: bool,
}

impl Keep {
    /// Whether there is any rule.
    pub(crate) fn forgets(&self) -> bool {
        !self.options().is_empty()
    }

    /// The rules as options of `snapshot forget`; none where all stays.
    pub(super) fn options(&self) -> Vec<String> {
        let rules = [
            ("--keep-last", self.last),
            ("--keep-hourly", self.hourly),
            ("--keep-daily", self.daily),
            ("--keep-weekly", self.weekly),
            ("--keep-monthly", self.monthly),
            ("--keep-yearly", self.yearly),
        ];
        let given = rules.iter().filter(|(_, count)| *count > 0);
        given
            .flat_map(|(option, count)| [(*option).to_owned(), count.to_string()])
            .collect()
    }
}

impl Spec {
    /// As a command line says it, for this host or for the whole cluster.
    pub(crate) fn new(args: &ScheduleAddArgs, host: Option<String>) -> Result<Spec> {
        let when = match (&args.on, args.every, args.on_change) {
            (Some(calendar), ..) => When::On(calendar.to_string()),
            (None, Some(seconds), _) => When::EveryS(seconds),
            (None, None, true) => When::OnChange(args.settle),
            (None, None, false) => anyhow::bail!("say when: --on, --every or --on-change"),
        };
        Ok(Spec {
            when,
            host,
            vms: (!args.all && args.groups.is_empty()).then(|| args.vms.clone()),
            groups: args.groups.clone(),
            consistency: args.consistency,
            or_crash: args.or == Some(Fallback::Crash),
            tags: args.tags.clone(),
            random_order: args.order == Order::Random,
            jitter_s: args.jitter.unwrap_or(0),
            parallel: args.parallel,
            window_s: args.window,
            catch_up: !args.no_catch_up,
            keep: Keep {
                last: args.keep_last,
                hourly: args.keep_hourly,
                daily: args.keep_daily,
                weekly: args.keep_weekly,
                monthly: args.keep_monthly,
                yearly: args.keep_yearly,
                prune: args.prune,
            },
            cluster: match args.cluster {
                false => None,
                true => {
                    let output = args.output.as_ref();
                    let output = output.map(|path| match bucket::place(path) {
                        Some(_) => Ok(path.clone()),
                        None => std::path::absolute(path),
                    });
                    let output = output.transpose()?;
                    Some(ClusterBackup {
                        output,
                        with_secrets: args.with_secrets,
                    })
                }
            },
        })
    }

    /// Whether it waits for changes.
    pub(super) fn is_on_change(&self) -> bool {
        matches!(self.when, When::OnChange(_))
    }

    /// Of a schedule in the catalog.
    pub(crate) fn of(schedule: &Schedule) -> Result<Spec> {
        serde_json::from_value(schedule.spec.clone()).with_context(|| {
            let name = &schedule.name;
            format!("schedule {name} is not understood; was it made by a newer vmtwin?")
        })
    }

    /// The options of `backup`.
    pub(super) fn backup_options(&self) -> Vec<String> {
        let mut options = vec![
            "--consistency".to_owned(),
            self.consistency.as_str().to_owned(),
        ];
        if self.or_crash {
            options.extend(["--or".to_owned(), "crash".to_owned()]);
        }
        for tag in &self.tags {
            options.extend(["--tag".to_owned(), tag.clone()]);
        }
        options
    }

    /// The first due time after `after`.
    pub(crate) fn next_due(
        &self,
        created: OffsetDateTime,
        after: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>> {
        let after = after.unix_timestamp().max(created.unix_timestamp());
        let next = match &self.when {
            When::On(text) => text.parse::<Calendar>()?.next_after(after),
            When::EveryS(period) => {
                let period = i64::try_from(*period)?.max(1);
                let passed = (after - created.unix_timestamp()) / period + 1;
                Some(created.unix_timestamp() + passed * period)
            }
            When::OnChange(_) => None,
        };
        Ok(next.map(OffsetDateTime::from_unix_timestamp).transpose()?)
    }

    /// The latest due time up to `now`.
    pub(crate) fn latest_due(
        &self,
        created: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>> {
        // Twice as far each time: most schedules are due often.
        let mut back = 3600;
        loop {
            let from = now.unix_timestamp().saturating_sub(back);
            let mut at = OffsetDateTime::from_unix_timestamp(from)?;
            let mut latest = None;
            while let Some(due) = self.next_due(created, at)?.filter(|due| *due <= now) {
                latest = Some(due);
                at = due;
            }
            if latest.is_some() || from <= created.unix_timestamp() || back > LOOK_BACK_S {
                return Ok(latest);
            }
            back *= 4;
        }
    }

    /// When what is due at `due` begins: later by its jitter, which is the same however often it is
    /// asked.
    pub(crate) fn begins(&self, name: &str, due: OffsetDateTime) -> OffsetDateTime {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        let host = self.host.as_deref().unwrap_or_default();
        (name, host, due.unix_timestamp()).hash(&mut hasher);
        let later = hasher.finish() % (self.jitter_s + 1);
        due + std::time::Duration::from_secs(later)
    }

    /// Whether this host follows it.
    pub(crate) fn is_followed_by(&self, host: &str, is_node: bool) -> bool {
        self.host.as_deref().map_or(is_node, |own| own == host)
    }

    /// Whether all nodes work on it, each on its part.
    pub(super) fn is_of_all_nodes(&self) -> bool {
        self.host.is_none() && self.cluster.is_none()
    }

    /// Whether it is to look after this guest.
    pub(crate) fn wants(&self, vm: &Vm) -> bool {
        // Settings that are not understood are told where they are used.
        let groups = Settings::of(vm).map(|settings| settings.groups);
        vm.role == VmRole::Guest && self.takes(&vm.name, &groups.unwrap_or_default())
    }

    /// Whether a guest of this name, in these groups, is one of its own.
    pub(crate) fn takes(&self, name: &str, groups: &[String]) -> bool {
        match (&self.vms, self.groups.as_slice()) {
            (Some(names), _) => names.iter().any(|one| one == name),
            (None, []) => true,
            (None, ours) => ours.iter().any(|group| groups.contains(group)),
        }
    }

    /// Whether it is too late to begin what was to begin at `begins`.
    pub(crate) fn is_over(&self, begins: OffsetDateTime, now: OffsetDateTime) -> bool {
        let late_s = (now - begins).whole_seconds();
        let window = self.window_s.map(|s| i64::try_from(s).unwrap_or(i64::MAX));
        let limit = match (self.catch_up, window) {
            (true, None) => return false,
            (true, Some(window)) => window,
            (false, None) => GRACE_S,
            (false, Some(window)) => window.min(GRACE_S),
        };
        late_s > limit
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use time::macros::datetime;

    use super::*;

    fn spec(when: When) -> Spec {
        Spec {
            when,
            host: Some("h".into()),
            vms: None,
            groups: Vec::new(),
            consistency: Consistency::Crash,
            or_crash: false,
            tags: Vec::new(),
            random_order: false,
            jitter_s: 600,
            parallel: 1,
            window_s: None,
            catch_up: true,
            keep: Keep::default(),
            cluster: None,
        }
    }

    #[test]
    fn guests_are_taken_by_name_by_group_or_all() {
        let all = spec(When::EveryS(1));
        let prod = ["prod".to_owned()];
        assert!(all.takes("web", &[]) && all.takes("web", &prod));
        let grouped = Spec {
            groups: vec!["prod".into(), "db".into()],
            ..all.clone()
        };
        assert!(!grouped.takes("web", &[]) && grouped.takes("web", &prod));
        assert!(!grouped.takes("prod", &["test".to_owned()]));
        let named = Spec {
            vms: Some(vec!["web".into()]),
            ..all
        };
        assert!(named.takes("web", &[]) && !named.takes("db", &prod));
    }

    #[test]
    fn only_the_latest_due_time_counts_and_none_before_it_was_made() {
        let daily = spec(When::On("*-*-* 02:30 UTC".into()));
        let made = datetime!(2026-11-01 12:00 UTC);
        let latest = |now| daily.latest_due(made, now).unwrap();
        assert_eq!(latest(datetime!(2026-11-02 02:29:59 UTC)), None);
        let first = datetime!(2026-11-02 02:30 UTC);
        assert_eq!(latest(first), Some(first));
        let late = datetime!(2026-12-24 18:00 UTC);
        assert_eq!(latest(late), Some(datetime!(2026-12-24 02:30 UTC)));
        // A clock that was set back finds what was done already.
        assert_eq!(latest(datetime!(2026-11-02 11:00 UTC)), Some(first));
        let yearly = spec(When::On("12-24 18:00 UTC".into()));
        let next_year = datetime!(2027-11-30 00:00 UTC);
        let due = yearly.latest_due(made, next_year).unwrap();
        assert_eq!(due, Some(datetime!(2026-12-24 18:00 UTC)));
    }

    #[test]
    fn periods_count_from_when_the_schedule_was_made() {
        let often = spec(When::EveryS(3600));
        let made = datetime!(2026-11-01 12:10 UTC);
        let next = |at| often.next_due(made, at).unwrap().unwrap();
        assert_eq!(next(made), datetime!(2026-11-01 13:10 UTC));
        assert_eq!(
            next(datetime!(2026-11-01 13:10 UTC)),
            datetime!(2026-11-01 14:10 UTC)
        );
        let due = often
            .latest_due(made, datetime!(2026-11-03 00:00 UTC))
            .unwrap();
        assert_eq!(due, Some(datetime!(2026-11-02 23:10 UTC)));
    }

    #[test]
    fn jitter_is_bounded_and_the_same_each_time_it_is_asked() {
        let daily = spec(When::On("daily".into()));
        let due = datetime!(2026-11-02 00:00 UTC);
        let begins = daily.begins("nightly", due);
        assert_eq!(begins, daily.begins("nightly", due));
        let later = (begins - due).whole_seconds();
        assert!((0..=600).contains(&later), "{later}");
    }

    #[test]
    fn what_is_too_late_is_known() {
        let mut daily = spec(When::On("daily".into()));
        let due = datetime!(2026-11-02 00:00 UTC);
        let hours = |h: i64| due + time::Duration::hours(h);
        assert!(!daily.is_over(due, hours(500)));
        daily.window_s = Some(7200);
        assert!(!daily.is_over(due, hours(2)));
        assert!(daily.is_over(due, hours(3)));
        daily.catch_up = false;
        assert!(daily.is_over(due, hours(1)));
        assert!(!daily.is_over(due, due));
    }

    #[test]
    fn a_spec_survives_the_catalog() {
        let mut spec = spec(When::EveryS(60));
        spec.keep.daily = 7;
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert_eq!(spec.keep.options(), ["--keep-daily", "7"]);
        let hostile = text.replace("\"host\"", "\"password_command\":\"sh\",\"host\"");
        assert!(serde_json::from_str::<Spec>(&hostile).is_err());
        assert!(spec.is_followed_by("h", true) && !spec.is_followed_by("i", true));
        spec.host = None;
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert!(spec.is_followed_by("i", true) && !spec.is_followed_by("i", false));
    }
}
