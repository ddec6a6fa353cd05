//! Retention: which snapshots of one group stay, and by which rule. A pure function.

use time::{Date, Duration, OffsetDateTime};

/// Rules of what stays; a snapshot stays if any rule keeps it. The default keeps nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the newest so many hours (days, …) that have any. By UTC.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// Weeks, by ISO 8601.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// All that are younger than this, counted back from the newest one of the group.
    pub within: Option<Duration>,
    /// All that have one of these tags.
    pub tags: Vec<String>,
}

/// The period a time falls into.
type Bucket = fn(OffsetDateTime) -> (i32, u32);

impl KeepRules {
    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// For each of `snapshots` (time and tags, in any order) the rules that keep it; none: it goes.
    #[must_use]
    pub fn apply(&self, snapshots: &[(OffsetDateTime, &[String])]) -> Vec<Vec<&'static str>> {
        let mut kept = vec![Vec::new(); snapshots.len()];
        let mut order: Vec<usize> = (0..snapshots.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(snapshots[*at].0));
        let buckets: [(&str, u32, Bucket); 5] = [
            ("hourly", self.hourly, |t| (day(t), u32::from(t.hour()))),
            ("daily", self.daily, |t| (day(t), 0)),
            ("weekly", self.weekly, |t| {
                let (year, week, _) = t.to_iso_week_date();
                (year, u32::from(week))
            }),
            ("monthly", self.monthly, |t| {
                (t.year(), u32::from(u8::from(t.month())))
            }),
            ("yearly", self.yearly, |t| (t.year(), 0)),
        ];
        let newest = order.first().map(|at| snapshots[*at].0);
        for (rank, at) in order.iter().enumerate() {
            let (time, tags) = snapshots[*at];
            if rank < self.last as usize {
                kept[*at].push("last");
            }
            let young = |within: Duration| newest.is_some_and(|newest| newest - time <= within);
            if self.within.is_some_and(young) {
                kept[*at].push("within");
            }
            if tags.iter().any(|tag| self.tags.contains(tag)) {
                kept[*at].push("tag");
            }
        }
        for (name, mut left, bucket) in buckets {
            let mut before = None;
            for at in &order {
                let this = bucket(snapshots[*at].0.to_offset(time::UtcOffset::UTC));
                if left > 0 && before != Some(this) {
                    kept[*at].push(name);
                    left -= 1;
                    before = Some(this);
                }
            }
        }
        kept
    }
}

fn day(time: OffsetDateTime) -> i32 {
    let date: Date = time.date();
    date.to_julian_day()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `YYYY-MM-DD HH:MM`, UTC.
    fn at(text: &str) -> OffsetDateTime {
        let text = format!("{}:00Z", text.replace(' ', "T"));
        OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339).unwrap()
    }

    fn kept(rules: &KeepRules, times: &[OffsetDateTime]) -> Vec<Vec<&'static str>> {
        let none: &[String] = &[];
        let list: Vec<_> = times.iter().map(|t| (*t, none)).collect();
        rules.apply(&list)
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let times = [
            at("2026-01-01 10:00"),
            at("2026-01-01 10:30"),
            at("2026-01-02 09:00"),
            at("2025-12-31 23:59"),
        ];
        let daily = KeepRules {
            daily: 2,
            ..KeepRules::default()
        };
        let expected: [&[&str]; 4] = [&[], &["daily"], &["daily"], &[]];
        assert_eq!(kept(&daily, &times), expected);
        let yearly = KeepRules {
            yearly: 5,
            ..KeepRules::default()
        };
        let expected: [&[&str]; 4] = [&[], &[], &["yearly"], &["yearly"]];
        assert_eq!(kept(&yearly, &times), expected);
        let within = KeepRules {
            within: Some(Duration::hours(23)),
            last: 1,
            ..KeepRules::default()
        };
        let expected: [&[&str]; 4] = [&["within"], &["within"], &["last", "within"], &[]];
        assert_eq!(kept(&within, &times)[1..], expected[1..]);
        // 2026-01-01 and 2025-12-31 are in the same ISO week.
        let weekly = KeepRules {
            weekly: 9,
            ..KeepRules::default()
        };
        assert_eq!(kept(&weekly, &times).concat(), ["weekly"]);
    }

    #[test]
    fn tags_keep() {
        let rules = KeepRules {
            tags: vec!["gold".into()],
            ..KeepRules::default()
        };
        let (gold, other) = (["gold".to_owned()], ["goldx".to_owned()]);
        let time = at("2026-01-01 10:00");
        let kept = rules.apply(&[(time, &gold), (time, &other)]);
        assert_eq!(kept, [vec!["tag"], vec![]]);
        assert!(!rules.is_empty() && KeepRules::default().is_empty());
    }

    proptest! {
        #[test]
        fn never_more_than_asked_for_and_always_the_newest(
            seconds in proptest::collection::vec(0i64..400_000_000, 1..60), daily in 1u32..9,
        ) {
            let instant = |s: &i64| OffsetDateTime::from_unix_timestamp(1_600_000_000 + s).unwrap();
            let times: Vec<_> = seconds.iter().map(instant).collect();
            let rules = KeepRules { daily, ..KeepRules::default() };
            let kept = kept(&rules, &times);
            let stays = kept.iter().filter(|k| !k.is_empty()).count();
            prop_assert!(stays >= 1 && stays <= daily as usize);
            let newest = times.iter().max().unwrap();
            prop_assert!(times.iter().zip(&kept).any(|(t, k)| t == newest && !k.is_empty()));
        }
    }
}
