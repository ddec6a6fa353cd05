//! A process is killed while it writes the journal: what it was told is on disk is there, and
//! nothing is there by half.
//!
//! The test starts itself again as the process to be killed; an environment variable tells it
//! which of the two it is.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;

use common::{CATALOG, backup, fresh, guest, start_again};
use serde_json::json;
use vmtwin_catalog::{Catalog, Error, NewStep, Outcome, StepState};

/// Steps that the killed process registers in one go: all or none of them may be there.
const BATCH: usize = 3;

/// The process to be killed: pauses the guest in the catalog, then registers without end, and
/// says so after each commit.
#[test]
fn writer() {
    let Ok(path) = std::env::var(CATALOG) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let catalog = Catalog::open(Path::new(&path)).await.unwrap();
        let vm = catalog.vm_by_name("web").await.unwrap();
        let job = catalog.start_job(backup(&vm.id)).await.unwrap();
        catalog
            .record_pause(&job, &vm.id, "pause", &json!({}))
            .await
            .unwrap();
        let long = "x".repeat(5000); // several pages, so that a torn write would show
        let step = |number| NewStep {
            name: format!("step {number}"),
            undo: json!(long),
        };
        loop {
            let batch: Vec<_> = (0..BATCH).map(step).collect();
            catalog.register_many(&job, &batch).await.unwrap();
            println!("committed");
        }
    });
}

#[tokio::test]
async fn a_killed_process_leaves_a_whole_journal() {
    for round in 0..5 {
        let fresh = fresh().await;
        let vm = fresh.catalog.add_vm(guest("web")).await.unwrap();
        let committed = run_and_kill(&fresh.path, 1 + 7 * round);

        let dead = fresh.catalog.dead_jobs().await.unwrap();
        assert_eq!(dead.len(), 1);
        assert!(fresh.catalog.vm(&vm).await.unwrap().resume_flag);
        let refused = fresh.catalog.start_job(backup(&vm)).await;
        assert!(matches!(refused, Err(Error::NotRecovered { .. })));

        let steps = fresh.catalog.steps(&dead[0].id).await.unwrap();
        let registered = steps.len() - 1; // beside the pause
        assert_eq!(registered % BATCH, 0, "a part of a batch is there");
        assert!(
            registered / BATCH >= committed,
            "{registered} of {committed} batches"
        );
        assert!(
            steps
                .iter()
                .enumerate()
                .all(|(at, step)| step.seq == at as u64)
        );
        assert!(steps.iter().all(|step| step.state == StepState::Registered));
        fresh.catalog.check().await.unwrap();
        recover(&fresh.catalog).await;
        fresh.catalog.start_job(backup(&vm)).await.unwrap();
    }
}

/// Kills the writer after so many commits, and returns how many it had announced by then.
fn run_and_kill(path: &Path, commits: usize) -> usize {
    let mut writer = start_again("writer", path);
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut seen = 0;
    let mut lines = lines.map_while(Result::ok);
    while seen < commits {
        let line = lines.next().expect("the writer ended by itself");
        seen += usize::from(line.contains("committed"));
    }
    writer.kill().unwrap(); // SIGKILL
    writer.wait().unwrap();
    seen + lines.filter(|line| line.contains("committed")).count()
}

/// What recovery does: adopt, undo the last first, end.
async fn recover(catalog: &Catalog) {
    for job in catalog.dead_jobs().await.unwrap() {
        let job = catalog.adopt_job(&job.id).await.unwrap();
        for step in catalog.open_steps(&job.id).await.unwrap() {
            match (step.name.as_str(), &job.vm_id) {
                ("pause", Some(vm)) => catalog.record_resume(vm, step.id).await.unwrap(),
                _ => catalog.mark_undone(step.id).await.unwrap(),
            }
        }
        catalog
            .finish_job(&job.id, Outcome::Undone, None)
            .await
            .unwrap();
    }
}
