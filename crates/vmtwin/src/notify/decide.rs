//! The decision: of what happened, what is told to whom, and what fails from here on. Pure.

use std::collections::HashSet;

use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{Decision, Failing, RunOutcome, Situation, TargetId};

use super::message::{Event, document};
use super::spec::{Kind, Spec};

/// What still fails is told again after this time: a day, less what a run may come earlier.
const AGAIN_AFTER: Duration = Duration::hours(23);

/// What all of it has in common.
#[derive(Debug)]
pub(super) struct Occasion {
    pub(super) host: String,
    pub(super) now: OffsetDateTime,
    /// The schedule that was followed ...
    pub(super) schedule: Option<String>,
    /// ... or who started it.
    pub(super) by: Option<String>,
    pub(super) due_at: Option<OffsetDateTime>,
    /// Ids of the guests of the table.
    pub(super) known: HashSet<String>,
}

/// How one thing ended.
#[derive(Debug)]
pub(super) struct Happened {
    /// By what it is remembered: a guest's id, or `SCHEDULE-ID/WORD`.
    pub(super) subject: String,
    /// By what else it may be remembered.
    pub(super) alias: Option<String>,
    /// For people.
    pub(super) what: String,
    /// Guests it is about; none: all.
    pub(super) guests: Option<Vec<String>>,
    pub(super) outcome: RunOutcome,
    pub(super) note: Option<String>,
}

/// An event, and which guests it is about.
struct Telling<'a> {
    happened: &'a Happened,
    event: Event,
}

/// Decides.
pub(super) fn decide(
    occasion: &Occasion,
    happened: &[Happened],
    situation: &Situation,
) -> Decision {
    // One that is not understood was made by a later version; the others are told all the same.
    let targets: Vec<(&TargetId, Spec)> = (situation.targets.iter())
        .filter_map(|target| Some((&target.id, Spec::of(target).ok()?)))
        .collect();
    let wanted = |kind: Kind, guests: &Option<Vec<String>>| {
        (targets.iter()).any(|(_, spec)| spec.wants(kind, guests.as_deref()))
    };
    let mut decision = Decision {
        mended: forgotten(occasion, situation),
        ..Decision::default()
    };
    let mut tellings = Vec::new();
    for one in happened {
        let before = situation.failing.get(&one.subject).copied();
        let (kind, since, again) = match one.outcome {
            RunOutcome::Missed => (Kind::Missed, None, false),
            RunOutcome::Failed | RunOutcome::Interrupted => {
                let due = before.is_none_or(|before| is_due(before, occasion.now));
                let told = due && wanted(Kind::Failure, &one.guests);
                let since = before.map_or(occasion.now, |before| before.since);
                let told_before = before.and_then(|before| before.told_at);
                let told_at = match told {
                    true => Some(occasion.now),
                    false => told_before,
                };
                let failing = Failing { since, told_at };
                decision.failing.push((one.subject.clone(), failing));
                if !told {
                    continue;
                }
                (Kind::Failure, Some(since), told_before.is_some())
            }
            RunOutcome::Done | RunOutcome::Warnings => {
                let alias = one.alias.as_ref();
                let by_alias = alias
                    .and_then(|alias| situation.failing.get(alias))
                    .copied();
                decision.mended.extend(before.map(|_| one.subject.clone()));
                decision.mended.extend(by_alias.and(one.alias.clone()));
                // Nobody hears that it is well again who never heard that it was not.
                match before.or(by_alias).filter(|was| was.told_at.is_some()) {
                    Some(was) => (Kind::Recovery, Some(was.since), false),
                    None => continue,
                }
            }
        };
        let event = Event {
            kind,
            what: one.what.clone(),
            outcome: one.outcome,
            since,
            again,
            note: one.note.clone(),
        };
        tellings.push(Telling {
            happened: one,
            event,
        });
    }
    for (id, spec) in &targets {
        let events: Vec<&Event> = (tellings.iter())
            .filter(|one| spec.wants(one.event.kind, one.happened.guests.as_deref()))
            .map(|one| &one.event)
            .collect();
        if !events.is_empty() {
            let document = document(occasion, &events);
            decision.messages.push(((*id).clone(), document));
        }
    }
    decision
}

fn is_due(before: Failing, now: OffsetDateTime) -> bool {
    before.told_at.is_none_or(|told| now - told >= AGAIN_AFTER)
}

/// Guests that failed and are not in the table any more.
fn forgotten(occasion: &Occasion, situation: &Situation) -> Vec<String> {
    let subjects = situation.failing.keys();
    subjects
        .filter(|subject| !subject.contains('/') && !occasion.known.contains(*subject))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;
    use vmtwin_catalog::NotifyTarget;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-11-23 02:30 UTC);

    fn target(on: &[&str], vms: Option<&[&str]>) -> NotifyTarget {
        NotifyTarget {
            id: TargetId::random().unwrap(),
            name: "ops".to_owned(),
            spec: json!({
                "target": {"command": {"command": "true", "timeout_s": 60}}, "on": on, "vms": vms
            }),
            host: None,
            created_at: START,
        }
    }

    fn happened(name: &str, outcome: RunOutcome) -> Happened {
        Happened {
            subject: name.to_owned(),
            alias: Some(format!("s/{name}")),
            what: name.to_owned(),
            guests: Some(vec![name.to_owned()]),
            outcome,
            note: Some("why".to_owned()),
        }
    }

    /// The catalog as it would be, over one decision after another.
    struct World {
        now: OffsetDateTime,
        situation: Situation,
    }

    impl World {
        fn new(targets: Vec<NotifyTarget>) -> World {
            let situation = Situation {
                targets,
                ..Situation::default()
            };
            World {
                now: START,
                situation,
            }
        }

        /// Lets it happen; gives the events of each message.
        fn happens(&mut self, all: &[Happened]) -> Vec<Vec<String>> {
            let occasion = Occasion {
                host: "host1".to_owned(),
                now: self.now,
                schedule: Some("nightly".to_owned()),
                by: None,
                due_at: Some(self.now),
                known: ["web", "db"].map(str::to_owned).into(),
            };
            let decision = decide(&occasion, all, &self.situation);
            for subject in &decision.mended {
                self.situation.failing.remove(subject);
            }
            self.situation.failing.extend(decision.failing);
            let event = |event: &serde_json::Value| {
                let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
                let again = if event["again"] == true { " again" } else { "" };
                format!("{} {}{again}", word("kind"), word("what"))
            };
            let events = |(_, document): &(TargetId, serde_json::Value)| {
                document["events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(event)
                    .collect()
            };
            decision.messages.iter().map(events).collect()
        }

        fn later(&mut self, hours: i64) -> &mut World {
            self.now += Duration::hours(hours);
            self
        }
    }

    const ALL_KINDS: &[&str] = &["failure", "recovery", "missed"];

    #[test]
    fn a_failure_is_told_once_a_day_and_its_end_once() {
        use RunOutcome::{Done, Failed, Interrupted, Missed, Warnings};
        let mut world = World::new(vec![target(ALL_KINDS, None)]);
        let (web, db) = (|o| happened("web", o), |o| happened("db", o));
        assert!(world.happens(&[web(Done), db(Warnings)]).is_empty());
        let first = world.later(1).happens(&[web(Failed), db(Interrupted)]);
        assert_eq!(first, [["failure web", "failure db"]], "one message");
        assert!(world.later(1).happens(&[web(Failed)]).is_empty());
        let next_day = world.later(23).happens(&[web(Failed), db(Done)]);
        assert_eq!(next_day, [["failure web again", "recovery db"]]);
        assert_eq!(
            world.situation.failing["web"].since,
            START + Duration::hours(1)
        );
        assert_eq!(world.happens(&[web(Missed)]), [["missed web"]]);
        assert_eq!(world.happens(&[web(Missed)]), [["missed web"]]);
        assert_eq!(world.happens(&[web(Done)]), [["recovery web"]]);
        assert!(world.happens(&[web(Done)]).is_empty());
        assert!(world.situation.failing.is_empty());
    }

    #[test]
    fn each_is_told_what_it_wants() {
        use RunOutcome::{Done, Failed};
        let targets = vec![
            target(&["failure"], Some(&["web"])),
            target(&["recovery"], None),
        ];
        let mut world = World::new(targets);
        let (web, db) = (|o| happened("web", o), |o| happened("db", o));
        let failed = world.happens(&[web(Failed), db(Failed)]);
        assert_eq!(failed, [["failure web"]]);
        // Nobody heard that db failed.
        let well = world.happens(&[web(Done), db(Done)]);
        assert_eq!(well, [["recovery web"]]);
        // What is about all guests is about each.
        let all = Happened {
            guests: None,
            ..happened("s/retention", Failed)
        };
        assert_eq!(world.happens(&[all]), [["failure s/retention"]]);
        assert!(world.happens(&[happened("db", Done)]).is_empty());
    }

    #[test]
    fn one_who_comes_later_is_told_what_fails() {
        use RunOutcome::{Done, Failed};
        let mut world = World::new(Vec::new());
        assert!(world.happens(&[happened("web", Failed)]).is_empty());
        world.situation.targets = vec![target(ALL_KINDS, None)];
        let told = world.later(1).happens(&[happened("web", Failed)]);
        assert_eq!(told, [["failure web"]]);
        assert_eq!(world.situation.failing["web"].since, START);
        // A guest that was missing by its name is there now.
        let missing = happened("s/db", Failed);
        assert_eq!(world.happens(&[missing]), [["failure s/db"]]);
        assert_eq!(world.happens(&[happened("db", Done)]), [["recovery db"]]);
        // One that is gone is forgotten.
        world.happens(&[happened("gone", Failed)]);
        world.happens(&[]);
        assert!(!world.situation.failing.contains_key("gone"));
    }
}
