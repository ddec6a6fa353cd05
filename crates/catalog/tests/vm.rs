//! The VM management table, its disks, the pause, snapshots and settings.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use common::{backup, disk, fresh, guest, inspection, reused_pid};
use serde_json::json;
use time::macros::datetime;
use vmtwin_catalog::{
    Consistency, Error, NewVm, Snapshot, SnapshotState, StepState, VmId, VmRole, VmState,
};

#[tokio::test]
async fn a_vm_is_added_found_and_removed() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let web = catalog.add_vm(guest("web")).await.unwrap();
    let twin = NewVm {
        role: VmRole::Twin,
        twin_of: Some(web.clone()),
        ..guest("web-twin")
    };
    let twin = catalog.add_vm(twin).await.unwrap();
    let vms = catalog.vms().await.unwrap();
    assert_eq!(
        vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(),
        ["web", "web-twin"]
    );
    assert_eq!(vms[0].state, VmState::Unknown);
    assert_eq!(vms[1].twin_of.as_ref(), Some(&web));
    assert_eq!(catalog.vm_by_name("web").await.unwrap(), vms[0]);
    catalog.remove_vm(&web).await.unwrap();
    assert_eq!(catalog.vm(&twin).await.unwrap().twin_of, None);
    assert!(matches!(catalog.vm_by_name("web").await, Err(Error::NoVm { name }) if name == "web"));
    assert!(matches!(
        catalog.remove_vm(&web).await,
        Err(Error::NoVm { .. })
    ));
}

#[tokio::test]
async fn names_and_ids_are_unique_and_sane() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    let same_name = catalog.add_vm(guest("web")).await;
    assert!(matches!(same_name, Err(Error::Exists { name }) if name == "web"));
    let same_id = catalog
        .add_vm(NewVm {
            id: Some(id),
            ..guest("other")
        })
        .await;
    assert!(matches!(same_id, Err(Error::Exists { .. })));
    for name in ["", "a/b", "a\nb"] {
        assert!(
            matches!(
                catalog.add_vm(guest(name)).await,
                Err(Error::Invalid { .. })
            ),
            "{name}"
        );
    }
    let orphan = NewVm {
        twin_of: Some(VmId::random().unwrap()),
        ..guest("orphan")
    };
    assert!(matches!(
        catalog.add_vm(orphan).await,
        Err(Error::NoVm { .. })
    ));
}

#[tokio::test]
async fn a_vm_gets_another_name() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog.add_vm(guest("taken")).await.unwrap();
    catalog.rename_vm(&id, "shop").await.unwrap();
    assert_eq!(catalog.vm_by_name("shop").await.unwrap().id, id);
    let taken = catalog.rename_vm(&id, "taken").await;
    assert!(matches!(taken, Err(Error::Exists { name }) if name == "taken"));
    let bad = catalog.rename_vm(&id, "a/b").await;
    assert!(matches!(bad, Err(Error::Invalid { .. })));
    let nobody = catalog.rename_vm(&VmId::random().unwrap(), "x").await;
    assert!(matches!(nobody, Err(Error::NoVm { .. })));
    assert_eq!(catalog.vm(&id).await.unwrap().name, "shop");
}

#[tokio::test]
async fn an_inspection_replaces_the_disks_but_keeps_the_switch() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog
        .update_inspection(&id, inspection(&["disk1", "disk0"]))
        .await
        .unwrap();
    catalog
        .record_switch(&id, "disk0", "disk0-copy")
        .await
        .unwrap();
    catalog
        .update_inspection(&id, inspection(&["disk0", "disk2"]))
        .await
        .unwrap();
    let vm = catalog.vm(&id).await.unwrap();
    let ids: Vec<_> = vm
        .disks
        .iter()
        .map(|disk| disk.found.disk_id.as_str())
        .collect();
    assert_eq!(ids, ["disk0", "disk2"]);
    assert_eq!(vm.disks[0].switched_to.as_deref(), Some("disk0-copy"));
    assert!(vm.disks[0].switched_at.is_some());
    assert_eq!(vm.disks[1].found, disk("disk2"));
    assert_eq!(vm.memory_bytes, Some(512 << 20));
    assert_eq!(vm.machine, Some(json!({"machine": "pc-q35", "cpus": 2})));
    assert_eq!(vm.state, VmState::Running);
    assert!(vm.seen_at >= Some(vm.added_at));
    let unknown = catalog.record_switch(&id, "disk1", "x").await;
    assert!(matches!(unknown, Err(Error::NoDisk { .. })));
}

#[tokio::test]
async fn an_inspection_is_recorded_whole_or_not_at_all() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog
        .update_inspection(&id, inspection(&["disk0"]))
        .await
        .unwrap();
    let before = catalog.vm(&id).await.unwrap();
    let twice = catalog
        .update_inspection(&id, inspection(&["disk1", "disk1"]))
        .await;
    assert!(matches!(twice, Err(Error::Invalid { .. })));
    let mut huge = inspection(&["disk1", "disk2"]);
    huge.disks[1].size_bytes = u64::MAX;
    assert!(matches!(
        catalog.update_inspection(&id, huge).await,
        Err(Error::Invalid { .. })
    ));
    assert_eq!(catalog.vm(&id).await.unwrap(), before);
}

#[tokio::test]
async fn a_pause_sets_flag_state_and_journal_together() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    let job = catalog.start_job(backup(&id)).await.unwrap();
    let step = catalog
        .record_pause(&job, &id, "pause", &json!({"run": true}))
        .await
        .unwrap();
    let paused = catalog.vm(&id).await.unwrap();
    assert_eq!((paused.state, paused.resume_flag), (VmState::Paused, true));
    assert_eq!(catalog.open_steps(&job).await.unwrap()[0].id, step);
    catalog.record_resume(&id, step).await.unwrap();
    let running = catalog.vm(&id).await.unwrap();
    assert_eq!(
        (running.state, running.resume_flag),
        (VmState::Running, false)
    );
    assert_eq!(
        catalog.steps(&job).await.unwrap()[0].state,
        StepState::Undone
    );
    // A second resume finds the journal closed, and leaves the row alone.
    catalog.set_resume_flag(&id, true).await.unwrap();
    assert!(matches!(
        catalog.record_resume(&id, step).await,
        Err(Error::Transition { .. })
    ));
    assert!(catalog.vm(&id).await.unwrap().resume_flag);
}

#[tokio::test]
async fn a_vm_that_a_job_works_on_is_not_removed() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog.start_job(backup(&id)).await.unwrap();
    assert!(matches!(
        catalog.remove_vm(&id).await,
        Err(Error::Busy { .. })
    ));
    let other = catalog.add_vm(guest("other")).await.unwrap();
    let dead = catalog
        .start_job_as(backup(&other), &reused_pid())
        .await
        .unwrap();
    let step = catalog
        .register_step(&dead, "filter", &json!({}))
        .await
        .unwrap();
    assert!(matches!(
        catalog.remove_vm(&other).await,
        Err(Error::NotRecovered { .. })
    ));
    catalog.mark_undone(step).await.unwrap();
    catalog.remove_vm(&other).await.unwrap();
    let history = catalog.job(&dead).await.unwrap();
    assert_eq!(
        (history.vm_id, history.vm_name.as_deref()),
        (None, Some("other"))
    );
}

fn snapshot(id: &str, repository_id: &str, vm_name: &str) -> Snapshot {
    Snapshot {
        id: id.to_owned(),
        repository_id: repository_id.to_owned(),
        vm_id: None,
        vm_name: vm_name.to_owned(),
        time: datetime!(2024-05-06 07:08:09.123456 UTC),
        consistency: Consistency::State,
        consistency_asked: Consistency::Application,
        bytes_read: 3,
        bytes_new: 2,
        bytes_stored: 1,
        parent: None,
        state: SnapshotState::Complete,
        report: json!({"pause_ms": 4}),
    }
}

#[tokio::test]
async fn snapshots_are_cached_corrected_and_rebuilt() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let later = Snapshot {
        time: datetime!(2025-01-01 00:00 +2),
        parent: Some("aa11".to_owned()),
        ..snapshot("ab22", "r1", "web")
    };
    catalog.upsert_snapshot(&later).await.unwrap();
    catalog
        .upsert_snapshot(&snapshot("aa11", "r1", "web"))
        .await
        .unwrap();
    catalog
        .upsert_snapshot(&snapshot("aa11", "r2", "db"))
        .await
        .unwrap();
    let corrected = Snapshot {
        bytes_stored: 9,
        ..snapshot("aa11", "r1", "web")
    };
    catalog.upsert_snapshot(&corrected).await.unwrap();
    assert_eq!(
        catalog.snapshots(Some("web")).await.unwrap(),
        [corrected, later.clone()]
    );
    assert_eq!(catalog.snapshots_by_prefix("aa").await.unwrap().len(), 2);
    assert_eq!(catalog.snapshots_by_prefix("a%").await.unwrap().len(), 0);

    let stray = vec![snapshot("cc33", "r2", "web")];
    let refused = catalog.replace_snapshots_of_repository("r1", stray).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })));
    catalog
        .replace_snapshots_of_repository("r1", vec![later.clone()])
        .await
        .unwrap();
    let ids: Vec<_> = catalog.snapshots(None).await.unwrap();
    assert_eq!(ids, [snapshot("aa11", "r2", "db"), later]);
    catalog.remove_snapshot("r2", "aa11").await.unwrap();
    let gone = catalog.remove_snapshot("r2", "aa11").await;
    assert!(matches!(gone, Err(Error::NoSnapshot { .. })));
}

#[tokio::test]
async fn rows_are_json_that_people_can_read() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let id = catalog.add_vm(guest("web")).await.unwrap();
    catalog
        .update_inspection(&id, inspection(&["disk0"]))
        .await
        .unwrap();
    let vm = catalog.vm(&id).await.unwrap();
    let json = serde_json::to_value(&vm).unwrap();
    assert_eq!(
        json["connection"],
        json!({"kind": "qmp", "address": "/run/guest.qmp"})
    );
    assert_eq!(json["disks"][0]["disk_id"], "disk0");
    assert_eq!(json["disks"][0]["switched_at"], json!(null));
    assert_eq!(
        serde_json::from_value::<vmtwin_catalog::Vm>(json).unwrap(),
        vm
    );
    let json = serde_json::to_value(snapshot("aa11", "r1", "web")).unwrap();
    assert_eq!(json["time"], "2024-05-06T07:08:09.123456Z");
}

#[tokio::test]
async fn settings_are_set_replaced_and_removed() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    assert_eq!(catalog.setting("repository").await.unwrap(), None);
    catalog.set_setting("repository", "a").await.unwrap();
    catalog.set_setting("repository", "b").await.unwrap();
    assert_eq!(
        catalog.setting("repository").await.unwrap().as_deref(),
        Some("b")
    );
    assert_eq!(catalog.settings().await.unwrap().len(), 1);
    catalog.remove_setting("repository").await.unwrap();
    catalog.remove_setting("repository").await.unwrap();
    assert_eq!(catalog.setting("repository").await.unwrap(), None);
}
