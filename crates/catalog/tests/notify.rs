//! Who is told what: one transaction from outcomes to messages, and messages claimed once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use common::{fresh, open};
use serde_json::json;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{Catalog, Decision, Error, Failing, MessageOutcome, RunOutcome, TargetId};

async fn target(catalog: &Catalog, name: &str, host: Option<&str>) -> TargetId {
    let spec = json!({"webhook": name});
    catalog.add_notify_target(name, &spec, host).await.unwrap()
}

fn message_to(target: &TargetId) -> Decision {
    Decision {
        messages: vec![(target.clone(), json!({"text": "Ä"}))],
        ..Decision::default()
    }
}

#[tokio::test]
async fn a_run_is_told_once_and_all_at_once() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let to = target(catalog, "ops", None).await;
    let taken = catalog.add_notify_target("ops", &json!({}), None).await;
    assert!(matches!(taken, Err(Error::TargetExists { .. })));
    assert!(
        catalog
            .add_notify_target("a/b", &json!({}), None)
            .await
            .is_err()
    );
    let due = datetime!(2026-11-23 02:30 UTC);
    let id = catalog.add_schedule("nightly", &json!({})).await.unwrap();
    for (subject, ends) in [("web", true), ("db", true), ("slow", false)] {
        assert!(catalog.claim_run(&id, due, subject).await.unwrap());
        if ends {
            let outcome = RunOutcome::Failed;
            let note = Some("no room");
            let ended = catalog.finish_run(&id, due, subject, outcome, note).await;
            ended.unwrap();
        }
    }
    assert_eq!(catalog.untold().await.unwrap(), [(id.clone(), due)]);
    let since = due + Duration::seconds(5);
    let failing = Failing {
        since,
        told_at: Some(since),
    };
    let told = catalog
        .tell(Some((&id, due)), |situation| {
            let subjects = situation.runs.iter().map(|run| run.subject.as_str());
            assert_eq!(subjects.collect::<Vec<_>>(), ["web", "db"]);
            assert_eq!(situation.targets.len(), 1);
            Decision {
                failing: vec![("web".to_owned(), failing), ("db".to_owned(), failing)],
                ..message_to(&to)
            }
        })
        .await;
    assert_eq!(told.unwrap(), 1);
    assert!(catalog.untold().await.unwrap().is_empty());
    let done = catalog.finish_run(&id, due, "slow", RunOutcome::Done, None);
    done.await.unwrap();
    let told = catalog
        .tell(Some((&id, due)), |situation| {
            assert_eq!(situation.runs.len(), 1);
            assert_eq!(situation.failing["web"], failing);
            Decision {
                mended: vec!["db".to_owned()],
                ..Decision::default()
            }
        })
        .await;
    assert_eq!(told.unwrap(), 0);
    let failing = catalog.failing().await.unwrap();
    assert_eq!(failing.keys().collect::<Vec<_>>(), ["web"]);
    assert_eq!(catalog.messages(&to, 10).await.unwrap().len(), 1);
    let figures = catalog.figures().await.unwrap();
    assert_eq!(figures.messages_waiting, 1);
    let nightly = &figures.schedules[0];
    assert!(
        nightly.runs.contains(&(Some(RunOutcome::Failed), 2)),
        "{nightly:?}"
    );
    let (at, parts) = nightly.last.clone().unwrap();
    assert_eq!((at, parts.len()), (due, 3));
    catalog.check().await.unwrap();
    catalog.remove_notify_target(&to).await.unwrap();
    let gone = catalog.notify_target("ops").await;
    assert!(matches!(gone, Err(Error::NoTarget { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_claimed_once_and_comes_back() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let anywhere = target(catalog, "anywhere", None).await;
    let there = target(catalog, "there", Some("host2")).await;
    for to in [&anywhere, &there] {
        catalog.tell(None, |_| message_to(to)).await.unwrap();
    }
    let now = OffsetDateTime::now_utc();
    let mut racers = Vec::new();
    for _ in 0..6 {
        let catalog = open(&fresh.path).await.unwrap();
        racers.push(tokio::spawn(async move {
            catalog.claim_messages("host1", now, 10).await.unwrap()
        }));
    }
    let mut claimed = Vec::new();
    for racer in racers {
        claimed.extend(racer.await.unwrap());
    }
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    let (target, message) = claimed.remove(0);
    assert_eq!((target.id, message.attempts), (anywhere.clone(), 1));

    // It failed, and is due again later.
    let later = now + Duration::minutes(1);
    let back = catalog.put_message_back(&message.id, later, "no answer");
    back.await.unwrap();
    assert!(
        catalog
            .claim_messages("host1", now, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let again = catalog.claim_messages("host2", later, 10).await.unwrap();
    let mut attempts: Vec<u64> = again.iter().map(|(_, message)| message.attempts).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 2], "host2 tells both");
    // A claim that never ends counts no more some time.
    assert!(
        catalog
            .claim_messages("host2", later, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let much_later = later + Duration::hours(3);
    assert_eq!(
        catalog
            .claim_messages("host2", much_later, 1)
            .await
            .unwrap()
            .len(),
        1
    );

    let outcome = MessageOutcome::Delivered;
    catalog
        .end_message(&message.id, outcome, None)
        .await
        .unwrap();
    let kept = catalog.messages(&anywhere, 10).await.unwrap();
    assert_eq!(kept[0].outcome, Some(outcome));
    assert_eq!(catalog.messages(&there, 10).await.unwrap()[0].outcome, None);
    catalog.forget_messages(much_later).await.unwrap();
    assert!(catalog.messages(&anywhere, 10).await.unwrap().is_empty());
    let left = catalog.messages(&there, 10).await.unwrap();
    assert_eq!((left.len(), left[0].outcome), (1, None));
    catalog.give_up_messages(much_later).await.unwrap();
    let left = catalog.messages(&there, 10).await.unwrap();
    assert_eq!(left[0].outcome, Some(MessageOutcome::GivenUp));
}
