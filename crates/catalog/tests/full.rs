//! A catalog on a file system without room: it says so, keeps what it has, and goes on when there
//! is room again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::path::Path;

use common::{backup, guest};
use vmtwin_catalog::{Catalog, Error, Outcome};
use vmtwin_testkit::SmallTmpfs;

/// More than the pool has connections, so that each meets the full disk.
const ROUNDS: usize = 6;

#[tokio::test]
async fn a_catalog_outlives_a_full_disk() {
    let Some(small) = SmallTmpfs::mount(1024) else {
        return;
    };
    let path = small.path().join("catalog.db");
    let catalog = Catalog::open(&path).await.unwrap();
    let vm = catalog.add_vm(guest("web")).await.unwrap();
    catalog.set_setting("key", "small").await.unwrap();
    small.fill();
    // Longer than what a checkpoint may have left to be written over.
    let long = "x".repeat(256 << 10);
    for _ in 0..ROUNDS {
        assert_full(catalog.set_setting("key", &long).await, &path);
        assert_eq!(
            catalog.setting("key").await.unwrap().as_deref(),
            Some("small")
        );
    }
    small.unfill();
    let job = catalog.start_job(backup(&vm)).await.unwrap();
    catalog.finish_job(&job, Outcome::Done, None).await.unwrap();
    catalog.set_setting("key", &long).await.unwrap();
    catalog.check().await.unwrap();
}

#[tokio::test]
async fn opening_on_a_full_disk_says_so() {
    let Some(small) = SmallTmpfs::mount(1024) else {
        return;
    };
    let path = small.path().join("catalog.db");
    Catalog::open(&path).await.unwrap().close().await;
    // A connection may still be closing; its files are room for the next one.
    let begun = std::time::Instant::now();
    let is_open = || small.path().join("catalog.db-wal").exists();
    while is_open() && begun.elapsed().as_secs() < 10 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    small.fill();
    assert_full(Catalog::open(&path).await, &path);
    small.unfill();
    Catalog::open(&path).await.unwrap().check().await.unwrap();
}

fn assert_full<T: std::fmt::Debug>(outcome: Result<T, Error>, catalog: &Path) {
    match outcome {
        Err(Error::DiskFull { path, .. }) => assert_eq!(path, catalog),
        other => panic!("{other:?}"),
    }
}
