//! Tasks, tokens, sessions, the audit and long histories, in both databases.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod common;

use common::fresh;
use serde_json::json;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{
    Connection, ConnectionKind, Consistency, Cursor, NewTask, NewVm, Scope, Snapshot,
    SnapshotState, TaskEnd, TaskState, VmRole,
};

fn wanted(number: u32, key: Option<&str>) -> NewTask {
    NewTask {
        command: "backup".into(),
        arguments: vec!["backup".into(), format!("web{number}")],
        asked_by: "me".into(),
        asked_key: key.map(str::to_owned),
        vm_name: Some(format!("web{}", number % 2)),
    }
}

#[tokio::test]
async fn a_task_is_wanted_once_by_a_key() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let (first, new) = catalog.add_task(&wanted(1, Some("k"))).await.unwrap();
    assert!(new && first.state == TaskState::Queued);
    let (again, new) = catalog.add_task(&wanted(1, Some("k"))).await.unwrap();
    assert!(!new && again.id == first.id);
    assert!(catalog.add_task(&wanted(2, Some("k"))).await.is_err());
    let other = NewTask {
        asked_by: "you".into(),
        ..wanted(2, Some("k"))
    };
    assert!(catalog.add_task(&other).await.unwrap().1);

    catalog.begin_task(&first.id).await.unwrap();
    let end = TaskEnd {
        state: TaskState::Warnings,
        exit_code: Some(3),
        error: None,
        result: Some(json!([{"snapshot": "1a"}])),
        text: Some("web: 1a".into()),
        log: "a\nb".into(),
    };
    catalog.end_task(&first.id, &end).await.unwrap();
    let ended = catalog.task(&first.id).await.unwrap();
    assert_eq!((ended.state, ended.exit_code), (end.state, end.exit_code));
    assert_eq!((ended.result, ended.text), (end.result, end.text));
    assert_eq!(ended.log, Some(end.log));
    assert!(catalog.dead_tasks().await.unwrap().is_empty());
    catalog
        .forget_tasks(OffsetDateTime::now_utc() + Duration::DAY)
        .await
        .unwrap();
    assert!(catalog.task(&first.id).await.is_err());
    assert_eq!(
        catalog
            .tasks(None, None, None, 9)
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}

#[tokio::test]
async fn a_list_is_whole_in_pages() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    for number in 0..7 {
        catalog.add_task(&wanted(number, None)).await.unwrap();
    }
    let all = catalog.tasks(None, None, None, 100).await.unwrap();
    assert!(all.items.len() == 7 && all.next.is_none());
    let mut seen = Vec::new();
    let mut after: Option<Cursor> = None;
    loop {
        let page = catalog.tasks(None, None, after.as_ref(), 3).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items);
        // As it goes over the wire.
        after = page.next.map(|next| next.to_string().parse().unwrap());
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, all.items);
    let web = catalog.tasks(Some("web1"), None, None, 100).await.unwrap();
    assert_eq!(web.items.len(), 3);
    let done = Some(TaskState::Done);
    assert!(
        catalog
            .tasks(None, done, None, 9)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    for wrong in ["", "x", "x~y", "9999~"] {
        assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_token_lets_in_until_it_ends() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let now = OffsetDateTime::now_utc();
    let (admin, view) = (Scope::Admin, Scope::View);
    assert!(admin.allows(view) && !view.allows(Scope::Backup) && view.allows(view));
    catalog
        .add_api_token("me", "h1", admin, None)
        .await
        .unwrap();
    let past = Some(now - Duration::SECOND);
    catalog
        .add_api_token("old", "h2", view, past)
        .await
        .unwrap();
    assert!(catalog.add_api_token("me", "h3", view, None).await.is_err());
    assert!(
        catalog
            .add_api_token("a b", "h3", view, None)
            .await
            .is_err()
    );

    let used = catalog.use_api_token("h1").await.unwrap().unwrap();
    assert_eq!((used.name.as_str(), used.scope), ("me", admin));
    assert!(catalog.api_tokens().await.unwrap()[0].used_at.is_some());
    assert!(catalog.use_api_token("h2").await.unwrap().is_none());
    assert!(catalog.use_api_token("no").await.unwrap().is_none());

    let soon = now + Duration::HOUR;
    catalog.add_session("s1", "me", "c", soon).await.unwrap();
    catalog.add_session("s2", "old", "c", soon).await.unwrap();
    let session = catalog.session("s1").await.unwrap().unwrap();
    assert_eq!(
        (session.token.name.as_str(), session.csrf.as_str()),
        ("me", "c")
    );
    assert!(catalog.session("s2").await.unwrap().is_none());
    catalog
        .add_session("s3", "me", "c", now - Duration::SECOND)
        .await
        .unwrap();
    assert!(catalog.session("s3").await.unwrap().is_none());
    assert!(catalog.remove_api_token("me").await.unwrap());
    assert!(!catalog.remove_api_token("me").await.unwrap());
    assert!(catalog.session("s1").await.unwrap().is_none());

    catalog
        .note_audit("me", "::1", "backup", "web", "ok")
        .await
        .unwrap();
    catalog
        .note_audit("me", "::1", "restore", "web", "refused")
        .await
        .unwrap();
    let page = catalog.audit(None, 1).await.unwrap();
    assert_eq!(page.items[0].action, "restore");
    let rest = catalog.audit(page.next.as_ref(), 1).await.unwrap();
    assert_eq!((rest.items[0].action.as_str(), rest.next), ("backup", None));
}

#[tokio::test]
async fn histories_are_summed_up() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let connection = Connection {
        kind: ConnectionKind::Qmp,
        address: "/run/web.qmp".into(),
    };
    let vm = NewVm {
        id: None,
        name: "web".into(),
        connection,
        role: VmRole::Guest,
        twin_of: None,
        node: None,
    };
    catalog.add_vm(vm).await.unwrap();
    let begin = datetime!(2026-11-01 12:00 UTC);
    for number in 0..40u64 {
        let name = if number % 4 == 0 { "db" } else { "web" };
        let snapshot = Snapshot {
            id: format!("{number:064x}"),
            repository_id: "r".into(),
            vm_id: None,
            vm_name: name.into(),
            time: begin + Duration::hours(12) * number as i32,
            consistency: Consistency::Crash,
            consistency_asked: Consistency::Crash,
            bytes_read: 100,
            bytes_new: number,
            bytes_stored: 1,
            parent: None,
            state: SnapshotState::Complete,
            report: json!({}),
        };
        catalog.upsert_snapshot(&snapshot).await.unwrap();
    }
    let latest = catalog.latest_snapshots().await.unwrap();
    let mut latest: Vec<_> = latest
        .iter()
        .map(|s| (s.vm_name.as_str(), s.bytes_new))
        .collect();
    latest.sort_unstable();
    assert_eq!(latest, [("web", 39)]);
    // Only guests of the table are looked at.
    let trend = catalog.trends(5).await.unwrap();
    let sizes: Vec<u64> = trend.iter().map(|s| s.bytes_new).collect();
    assert_eq!(sizes, [34, 35, 37, 38, 39]);
    assert_eq!(catalog.trends(500).await.unwrap().len(), 30);
    let growth = catalog.growth(3).await.unwrap();
    assert_eq!((growth.len(), growth[2].day.as_str()), (3, "2026-11-21"));
    assert_eq!(
        (
            growth[1].bytes_read,
            growth[1].bytes_new,
            growth[1].snapshots
        ),
        (200, 37 + 38, 2)
    );
    let page = catalog.snapshots_page(Some("web"), None, 2).await.unwrap();
    assert_eq!((page.items[0].bytes_new, page.items[1].bytes_new), (39, 38));
    let next = catalog
        .snapshots_page(None, page.next.as_ref(), 1)
        .await
        .unwrap();
    assert_eq!(next.items[0].bytes_new, 37);
}

#[tokio::test]
async fn a_deletion_is_put_off_once() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let ids = ["aa".to_owned(), "bb".to_owned()];
    let (soon, late) = (
        datetime!(2026-01-02 3:04 UTC),
        datetime!(2027-01-01 0:00 UTC),
    );
    catalog
        .put_off_deletion("r", &ids[..1], soon)
        .await
        .unwrap();
    catalog.put_off_deletion("r", &ids, late).await.unwrap();
    catalog
        .put_off_deletion("other", &ids[..1], late)
        .await
        .unwrap();
    let waiting = catalog.deletions(Some("r")).await.unwrap();
    let seen: Vec<_> = waiting
        .iter()
        .map(|w| (w.snapshot_id.as_str(), w.due_at))
        .collect();
    assert_eq!(seen, [("aa", soon), ("bb", late)]);
    assert_eq!(catalog.drop_deletions("r", &ids).await.unwrap(), 2);
    assert_eq!(catalog.drop_deletions("r", &ids).await.unwrap(), 0);
    assert_eq!(catalog.deletions(None).await.unwrap().len(), 1);
}
