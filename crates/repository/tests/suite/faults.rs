//! A store or a source that fails: the backup fails, nothing is listed, the next one works.

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Quiet, TestImage, TestRepository, grain, meta, noise, small};
use vmtwin_repository::faulty::{FaultyStore, Limits};
use vmtwin_repository::{Error, IngestOptions, LocalStore, Password, Repository, Result, Snapshot};

fn try_backup(test: &TestRepository, seed: u64) -> Result<Snapshot> {
    let backup = test.repository.start_backup(&small())?;
    let image = TestImage::mixed(seed, 8 << 20);
    backup.add_image("/disks/vda", &image, &grain(64), &Quiet::default())?;
    backup.add_bytes("/machine.json", b"{}")?;
    backup.finish(meta())
}

fn snapshots(test: &TestRepository) -> usize {
    let list = test.repository.snapshots().unwrap();
    assert!(list.damaged.is_empty());
    list.snapshots.len()
}

#[test]
fn a_store_that_fails_after_any_number_of_operations() {
    let test = TestRepository::new();
    test.store.set_limits(Limits::default());
    try_backup(&test, 0).unwrap();
    test.wait_for_no_locks();
    let ops = test.store.ops();
    assert!(ops >= 7, "lock, three packs, index, snapshot, lock: {ops}");
    let kinds = [
        ErrorKind::StorageFull,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::TimedOut,
    ];
    // The last operation removes the lock, after the snapshot is there.
    for most in 0..ops - 1 {
        let kind = kinds[most as usize % kinds.len()];
        let before = snapshots(&test);
        test.store.set_limits(Limits {
            fail_after_ops: Some(most),
            error_kind: Some(kind),
            ..Limits::default()
        });
        let result = try_backup(&test, 100 + most);
        test.store.set_limits(Limits::default());
        let error = result.expect_err("a store that fails must fail the backup");
        let told = matches!(&error, Error::Store { source, .. } if source.kind() == kind);
        assert!(told, "after {most} operations: {error:?}");
        assert_eq!(snapshots(&test), before, "after {most} operations");
        test.wait_for_no_locks();
        // The later backup reuses what was stored and indexed.
        try_backup(&test, 100 + most).unwrap();
    }
    test.check();
}

#[test]
fn a_store_that_fails_while_a_repository_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(LocalStore::new(folder.path().join("repo")));
    let store = Arc::new(FaultyStore::new(local, Limits::default()));
    let password = Password::from("x");
    for most in 0..3 {
        store.set_limits(Limits {
            fail_after_ops: Some(most),
            error_kind: Some(ErrorKind::StorageFull),
            ..Limits::default()
        });
        let made = Repository::init_with(Arc::clone(&store) as _, &password);
        assert!(matches!(made, Err(Error::Store { .. })), "{most}: {made:?}");
    }
    store.set_limits(Limits::default());
    Repository::init_with(Arc::clone(&store) as _, &password).unwrap();
    let keys = std::fs::read_dir(folder.path().join("repo/keys"))
        .unwrap()
        .count();
    assert_eq!(keys, 1, "keys of attempts that failed are gone");
}

fn stalled() -> Limits {
    Limits {
        stall: true,
        ..Limits::default()
    }
}

#[test]
fn a_stalled_store_and_a_cancel() {
    let test = TestRepository::new();
    let backup = test.repository.start_backup(&small()).unwrap();
    test.store.set_limits(stalled());
    let progress = Quiet::default();
    let image = TestImage::new(noise(1, 30 << 20));
    let (result, took) = std::thread::scope(|scope| {
        let run = scope.spawn(|| backup.add_image("/disks/vda", &image, &grain(64), &progress));
        std::thread::sleep(Duration::from_millis(700));
        assert!(
            !run.is_finished(),
            "the buffers are full and the store is stalled"
        );
        let began = Instant::now();
        progress.cancel.store(true, Ordering::SeqCst);
        (run.join().unwrap(), began.elapsed())
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(backup.buffer_peak_bytes() <= backup.buffer_bound_bytes());
    let began = Instant::now();
    let finished = backup.finish(meta());
    assert!(finished.is_err());
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    test.store.set_limits(Limits::default());
    test.wait_for_no_locks();
    assert_eq!(snapshots(&test), 0);
    try_backup(&test, 1).unwrap();
    test.wait_for_no_locks();
    test.check();
}

/// The store hangs at every step of `finish`, the caller cancels, then the store goes on: there
/// must be no snapshot.
#[test]
fn a_cancel_in_finish_leaves_no_snapshot() {
    for wait_ms in [0, 30, 60, 90, 120, 200] {
        let test = TestRepository::new();
        let cancel = Arc::new(AtomicBool::new(false));
        let options = IngestOptions {
            cancel: Some(Arc::clone(&cancel)),
            ..small()
        };
        let backup = test.repository.start_backup(&options).unwrap();
        backup.add_bytes("/a", b"a").unwrap();
        test.store.set_limits(Limits {
            // Every object takes a while, so that the stall hits another one each time.
            write_bytes_per_s: Some(5_000),
            ..Limits::default()
        });
        let finished = std::thread::scope(|scope| {
            let run = scope.spawn(|| backup.finish(meta()));
            std::thread::sleep(Duration::from_millis(wait_ms));
            test.store.set_limits(stalled());
            std::thread::sleep(Duration::from_millis(100));
            cancel.store(true, Ordering::SeqCst);
            run.join().unwrap()
        });
        test.store.set_limits(Limits::default());
        test.wait_for_no_locks();
        std::thread::sleep(Duration::from_millis(100));
        match finished {
            Err(Error::Cancelled) => assert_eq!(snapshots(&test), 0, "after {wait_ms} ms"),
            Ok(_) => assert_eq!(snapshots(&test), 1, "after {wait_ms} ms"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn memory_is_bounded_when_the_store_is_slow() {
    let test = TestRepository::new();
    let backup = test.repository.start_backup(&small()).unwrap();
    test.store.set_limits(Limits {
        write_bytes_per_s: Some(16 << 20),
        ..Limits::default()
    });
    let image = TestImage::new(noise(2, 24 << 20));
    backup
        .add_image("/disks/vda", &image, &grain(64), &Quiet::default())
        .unwrap();
    let (peak, bound) = (backup.buffer_peak_bytes(), backup.buffer_bound_bytes());
    assert!(peak <= bound && bound < 4 << 20, "{peak} of {bound}");
    test.store.set_limits(Limits::default());
    backup.finish(meta()).unwrap();
    let default = IngestOptions::default();
    let most = default.pack_bytes * default.pack_buffers + default.lanes * 5 * (1 << 20);
    assert!(most < 300 << 20, "the defaults stay below 300 MiB: {most}");
}

struct BrokenReader(usize);

impl Read for BrokenReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("broken pipe of a test"));
        }
        let length = buf.len().min(self.0);
        buf[..length].fill(7);
        self.0 -= length;
        Ok(length)
    }
}

#[test]
fn a_source_that_fails_fails_the_backup() {
    let test = TestRepository::new();
    for broken_at in [0, 5 << 20, (8 << 20) - 1] {
        let backup = test.repository.start_backup(&small()).unwrap();
        let mut image = TestImage::new(noise(4, 8 << 20));
        image.broken_at = Some(broken_at);
        let result = backup.add_image("/disks/vda", &image, &grain(64), &Quiet::default());
        assert!(matches!(result, Err(Error::Source { .. })), "{result:?}");
        let later = backup.add_bytes("/a", b"a");
        assert!(matches!(later, Err(Error::AlreadyFailed)), "{later:?}");
        assert!(backup.finish(meta()).is_err());
    }
    let backup = test.repository.start_backup(&small()).unwrap();
    let result = backup.add_reader("/a", &mut BrokenReader(3 << 20));
    let told = matches!(result, Err(Error::Source { offset_bytes, .. }) if offset_bytes == 3 << 20);
    assert!(told, "{result:?}");
    assert!(backup.finish(meta()).is_err());
    assert_eq!(snapshots(&test), 0);
}

#[test]
fn a_path_that_is_taken_fails_the_backup() {
    let test = TestRepository::new();
    let backup = test.repository.start_backup(&small()).unwrap();
    backup.add_bytes("/a", b"a").unwrap();
    assert!(matches!(
        backup.add_bytes("/a", b"b"),
        Err(Error::InvalidPath { .. })
    ));
    assert!(backup.finish(meta()).is_err());
    assert_eq!(snapshots(&test), 0);
}
