//! Jobs and journals: who may hold a guest, how a dead owner is found, what a journal allows.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;

use common::{CATALOG, backup, fresh, guest, open, reused_pid, start_again};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use vmtwin_catalog::transition::{Change, check};
use vmtwin_catalog::{
    Catalog, Error, JobId, JobKind, JobState, NewJob, NewStep, Outcome, ProcessIdentity, StepId,
    StepState,
};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_race_for_a_guest_one_wins() {
    let fresh = fresh().await;
    let id = fresh.catalog.add_vm(guest("web")).await.unwrap();
    let mut racers = Vec::new();
    for _ in 0..6 {
        // Connections of its own for each group, as in several processes.
        let catalog = open(&fresh.path).await.unwrap();
        for _ in 0..8 {
            let (catalog, new) = (catalog.clone(), backup(&id));
            racers.push(tokio::spawn(async move { catalog.start_job(new).await }));
        }
    }
    let mut won = Vec::new();
    let mut refused_for = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(job) => won.push(job),
            Err(Error::Busy { job, pid, .. }) => {
                assert_eq!(pid, std::process::id());
                refused_for.push(job);
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((won.len(), refused_for.len()), (1, 47));
    assert!(refused_for.iter().all(|job| *job == won[0]));
    fresh
        .catalog
        .finish_job(&won[0], Outcome::Done, None)
        .await
        .unwrap();
    fresh.catalog.start_job(backup(&id)).await.unwrap();
}

/// One of several processes that want the same guest: says whether it got it, and lives on until
/// its input is closed.
#[test]
fn racer() {
    let Ok(path) = std::env::var(CATALOG) else {
        return;
    };
    // With a thread of its own: what the refused leave has to be rolled back while they wait.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let started = runtime.block_on(async {
        let catalog = open(Path::new(&path)).await.unwrap();
        let vm = catalog.vm_by_name("web").await.unwrap();
        catalog.start_job(backup(&vm.id)).await
    });
    match started {
        Ok(_) => println!("\noutcome won"),
        Err(Error::Busy { .. }) => println!("\noutcome refused"),
        Err(other) => panic!("{other:?}"),
    }
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[tokio::test]
async fn of_several_processes_that_race_for_a_guest_one_wins() {
    let fresh = fresh().await;
    let id = fresh.catalog.add_vm(guest("web")).await.unwrap();
    let mut racers: Vec<_> = (0..6).map(|_| start_again("racer", &fresh.path)).collect();
    let mut outcomes: Vec<_> = racers.iter_mut().map(outcome).collect();
    outcomes.sort();
    assert_eq!(outcomes.pop().as_deref(), Some("outcome won"));
    assert!(
        outcomes.iter().all(|one| one == "outcome refused"),
        "{outcomes:?}"
    );
    let refused = fresh.catalog.start_job(backup(&id)).await;
    assert!(matches!(refused, Err(Error::Busy { pid, .. }) if pid != std::process::id()));
    for mut racer in racers {
        drop(racer.stdin.take());
        racer.wait().unwrap();
    }
    fresh.catalog.start_job(backup(&id)).await.unwrap();
}

fn outcome(racer: &mut Child) -> String {
    let lines = BufReader::new(racer.stdout.as_mut().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    lines
        .find(|line| line.starts_with("outcome"))
        .expect("the racer says nothing")
}

#[tokio::test]
async fn only_jobs_that_hold_the_same_guest_exclude_each_other() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let web = catalog.add_vm(guest("web")).await.unwrap();
    let db = catalog.add_vm(guest("db")).await.unwrap();
    catalog.start_job(backup(&web)).await.unwrap();
    catalog.start_job(backup(&db)).await.unwrap();
    let on_web = |kind| NewJob {
        kind,
        vm_id: Some(web.clone()),
    };
    catalog.start_job(on_web(JobKind::Restore)).await.unwrap();
    catalog
        .start_job(NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        })
        .await
        .unwrap();
    let twin = catalog.start_job(on_web(JobKind::Twin)).await;
    assert!(matches!(twin, Err(Error::Busy { .. })));
    let unknown = backup(&vmtwin_catalog::VmId::random().unwrap());
    assert!(matches!(
        catalog.start_job(unknown).await,
        Err(Error::NoVm { .. })
    ));
}

#[tokio::test]
async fn dead_owners_are_found_and_live_and_foreign_ones_are_not() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let own = catalog
        .start_job(NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        })
        .await
        .unwrap();
    let start = async |owner: &ProcessIdentity| {
        let new = NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        };
        catalog.start_job_as(new, owner).await.unwrap()
    };
    let reused = start(&reused_pid()).await;
    let rebooted = ProcessIdentity {
        boot_id: "earlier".to_owned(),
        ..reused_pid()
    };
    let before_boot = start(&rebooted).await;
    let elsewhere = start(&ProcessIdentity {
        host: "elsewhere".to_owned(),
        ..rebooted
    })
    .await;
    let mut child = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let child_identity = ProcessIdentity::of_pid(child.id()).unwrap().unwrap();
    let of_child = start(&child_identity).await;
    assert_eq!(dead(catalog).await, [before_boot.clone(), reused.clone()]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(dead(catalog).await, [of_child, before_boot, reused]);
    assert!(
        !dead(catalog)
            .await
            .iter()
            .any(|job| *job == own || *job == elsewhere)
    );
}

async fn dead(catalog: &Catalog) -> Vec<JobId> {
    catalog
        .dead_jobs()
        .await
        .unwrap()
        .into_iter()
        .map(|job| job.id)
        .collect()
}

#[tokio::test]
async fn a_guest_whose_job_was_cut_off_waits_for_recovery() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let web = catalog.add_vm(guest("web")).await.unwrap();
    let job = catalog
        .start_job_as(backup(&web), &reused_pid())
        .await
        .unwrap();
    let step = catalog
        .record_pause(&job, &web, "pause", &json!({}))
        .await
        .unwrap();
    let refused = catalog.start_job(backup(&web)).await;
    assert!(matches!(refused, Err(Error::NotRecovered { job: which }) if which == job));

    let adopted = catalog.adopt_job(&job).await.unwrap();
    assert!(adopted.owner.is_alive());
    assert!(matches!(
        catalog.adopt_job(&job).await,
        Err(Error::Busy { .. })
    ));
    assert!(dead(catalog).await.is_empty());
    catalog
        .note_error(&job, "the guest does not answer")
        .await
        .unwrap();
    let early = catalog.finish_job(&job, Outcome::Undone, None).await;
    assert!(matches!(early, Err(Error::OpenSteps { open: 1, .. })));
    catalog.record_resume(&web, step).await.unwrap();
    catalog
        .finish_job(&job, Outcome::Undone, Some(&json!({"resumed": 1})))
        .await
        .unwrap();
    let ended = catalog.job(&job).await.unwrap();
    assert_eq!(ended.state, JobState::Undone);
    assert_eq!(ended.error.as_deref(), Some("the guest does not answer"));
    assert_eq!(ended.report, Some(json!({"resumed": 1})));
    catalog.start_job(backup(&web)).await.unwrap();
}

#[tokio::test]
async fn a_job_ends_once_and_takes_no_steps_afterwards() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let job = catalog
        .start_job(NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        })
        .await
        .unwrap();
    let error = "disk full".to_owned();
    catalog
        .finish_job(&job, Outcome::Failed { error }, None)
        .await
        .unwrap();
    let ended = catalog.job(&job).await.unwrap();
    assert_eq!(ended.error.as_deref(), Some("disk full"));
    assert!(ended.ended_at >= Some(ended.started_at));
    let again = catalog.finish_job(&job, Outcome::Done, None).await;
    assert!(matches!(
        again,
        Err(Error::Transition {
            from: "failed",
            to: "done",
            ..
        })
    ));
    let late = catalog.register_step(&job, "late", &json!({})).await;
    assert!(matches!(late, Err(Error::Ended { .. })));
    let nowhere = catalog
        .register_step(&JobId::random().unwrap(), "x", &json!({}))
        .await;
    assert!(matches!(nowhere, Err(Error::NoJob { .. })));
}

#[tokio::test]
async fn steps_are_undone_last_first() {
    let fresh = fresh().await;
    let catalog = &fresh.catalog;
    let job = catalog
        .start_job(NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        })
        .await
        .unwrap();
    let first = catalog
        .register_step(&job, "first", &json!({"node": "a"}))
        .await
        .unwrap();
    let new = |name: &str| NewStep {
        name: name.to_owned(),
        undo: json!([1, null]),
    };
    let more = catalog
        .register_many(&job, &[new("second"), new("third")])
        .await
        .unwrap();
    catalog.mark_done(first).await.unwrap();
    catalog.release(more[0]).await.unwrap();
    let open = catalog.open_steps(&job).await.unwrap();
    let seen: Vec<_> = open
        .iter()
        .map(|step| (step.name.as_str(), step.seq))
        .collect();
    assert_eq!(seen, [("third", 2), ("first", 0)]);
    assert_eq!(open[1].undo, json!({"node": "a"}));
    // All or none: the second is closed already, so the third stays open.
    assert!(catalog.release_many(&[more[1], more[0]]).await.is_err());
    assert_eq!(catalog.open_steps(&job).await.unwrap().len(), 2);
    let unknown = catalog.mark_done(StepId(-1)).await;
    assert!(matches!(unknown, Err(Error::NoStep { .. })));
}

/// Whatever is asked in whatever order, the journal follows the one table of legal changes, and
/// a refused change alters nothing.
#[test]
fn the_journal_follows_the_table_of_changes() {
    // With a thread of its own: what the refused leave has to be rolled back while they wait.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let fresh = runtime.block_on(fresh());
    let catalog = &fresh.catalog;
    let requests = prop::collection::vec((0usize..4, 1usize..StepState::ALL.len()), 0..24);
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&requests, |requests| {
            runtime.block_on(follow(catalog, &requests));
            Ok(())
        })
        .unwrap();
}

async fn follow(catalog: &Catalog, requests: &[(usize, usize)]) {
    let job = catalog
        .start_job(NewJob {
            kind: JobKind::Prune,
            vm_id: None,
        })
        .await
        .unwrap();
    let new = |number: usize| NewStep {
        name: number.to_string(),
        undo: json!(number),
    };
    let steps: Vec<_> = (0..4).map(new).collect();
    let ids = catalog.register_many(&job, &steps).await.unwrap();
    let mut model = [StepState::Registered; 4];
    for &(at, to) in requests {
        let to = StepState::ALL[to];
        let asked = match to {
            StepState::Done => catalog.mark_done(ids[at]).await,
            StepState::Undone => catalog.mark_undone(ids[at]).await,
            StepState::Released => catalog.release(ids[at]).await,
            StepState::Registered => unreachable!("nothing asks for it"),
        };
        let legal = check(Change::Step(model[at], to)).is_ok();
        assert_eq!(asked.is_ok(), legal, "{} to {to}", model[at]);
        if legal {
            model[at] = to;
        }
        let stored = catalog.steps(&job).await.unwrap();
        assert!(stored.iter().map(|step| step.state).eq(model));
    }
    let open = model.iter().filter(|state| state.is_open()).count();
    let ended = catalog.finish_job(&job, Outcome::Done, None).await;
    assert_eq!(ended.is_ok(), open == 0);
}
