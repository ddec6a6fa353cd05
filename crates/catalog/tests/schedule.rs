//! Schedules and their runs, in both databases.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use common::fresh;
use serde_json::json;
use time::macros::datetime;
use vmtwin_catalog::{Error, RunOutcome};

#[tokio::test]
async fn a_due_time_is_claimed_once() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let spec = json!({"when": "daily"});
    let id = catalog.add_schedule("nightly", &spec).await.unwrap();
    let taken = catalog.add_schedule("nightly", &spec).await;
    assert!(matches!(taken, Err(Error::ScheduleExists { .. })));
    assert!(catalog.add_schedule("", &spec).await.is_err());
    assert_eq!(catalog.schedule("nightly").await.unwrap().spec, spec);
    catalog.enable_schedule(&id, false).await.unwrap();
    assert!(!catalog.schedules().await.unwrap()[0].enabled);

    let (first, second) = (
        datetime!(2026-11-23 02:30 UTC),
        datetime!(2026-11-24 02:30 UTC),
    );
    assert!(catalog.claim_run(&id, first, "web").await.unwrap());
    assert!(!catalog.claim_run(&id, first, "web").await.unwrap());
    assert!(catalog.claim_run(&id, first, "db").await.unwrap());
    assert!(catalog.claim_run(&id, second, "web").await.unwrap());
    let done = RunOutcome::Done;
    catalog
        .finish_run(&id, second, "web", done, Some("1a2b"))
        .await
        .unwrap();
    let runs = catalog.runs(&id, 10).await.unwrap();
    assert_eq!((runs.len(), runs[0].due_at), (3, second));
    assert_eq!(runs[0].outcome, Some(done));
    assert_eq!(runs[0].note.as_deref(), Some("1a2b"));
    // This process lives.
    assert!(catalog.dead_runs().await.unwrap().is_empty());
    catalog.check().await.unwrap();
    // What has not ended stays.
    catalog
        .forget_runs(datetime!(2027-01-01 00:00 UTC))
        .await
        .unwrap();
    assert_eq!(catalog.runs(&id, 10).await.unwrap().len(), 2);
    catalog.remove_schedule(&id).await.unwrap();
    let gone = catalog.schedule("nightly").await;
    assert!(matches!(gone, Err(Error::NoSchedule { .. })), "{gone:?}");
}
