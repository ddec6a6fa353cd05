//! Locks, with stock restic on the other side.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::{TestImage, TestRepository, grain, meta, noise, small};
use rustix::process::{Pid, Signal, kill_process};
use vmtwin_repository::{Error, LockMode};

fn prepared() -> TestRepository {
    let test = TestRepository::new();
    test.backup(&TestImage::mixed(1, 4 << 20), &grain(64));
    test
}

fn refused(test: &TestRepository, arguments: &[&str]) {
    let output = test.restic(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?}");
    assert!(
        errors.contains("unable to create lock"),
        "{arguments:?}: {errors}"
    );
}

#[test]
fn restic_honours_our_exclusive_lock() {
    let test = prepared();
    let lock = test.repository.hold_lock(LockMode::Exclusive).unwrap();
    refused(&test, &["check"]);
    refused(&test, &["backup", "/etc/hostname"]);
    let ours = test.repository.start_backup(&small());
    assert!(
        matches!(
            ours,
            Err(Error::Locked {
                exclusive: true,
                ..
            })
        ),
        "{ours:?}"
    );
    lock.check_held().unwrap();
    drop(lock);
    assert!(test.repository.locks().unwrap().is_empty());
    test.check();
}

#[test]
fn restic_honours_our_shared_lock() {
    let test = prepared();
    let backup = test.repository.start_backup(&small()).unwrap();
    assert_eq!(backup.lock_id(), backup.current_lock_id());
    let locks = test.repository.locks().unwrap();
    assert_eq!(locks.len(), 1);
    assert_eq!(locks[0].id, backup.lock_id());
    assert_eq!(locks[0].pid, std::process::id());
    assert!(!locks[0].stale && !locks[0].exclusive);
    refused(&test, &["check"]);
    refused(&test, &["prune"]);
    test.restic_ok(&["backup", "/etc/hostname"]);
    let remove = test
        .repository
        .remove_snapshot(&test.repository.snapshot("latest").unwrap().id);
    assert!(
        matches!(
            remove,
            Err(Error::Locked {
                exclusive: false,
                ..
            })
        ),
        "{remove:?}"
    );
    assert_eq!(test.repository.remove_stale_locks().unwrap(), 0);
    backup.finish(meta()).unwrap();
    test.check();
}

/// Starts restic and waits for its lock.
fn start(test: &TestRepository, arguments: &[&str]) -> Child {
    let mut command = test.restic_command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command
        .spawn()
        .expect("these tests need `restic` installed");
    let began = Instant::now();
    while test.repository.locks().unwrap().is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "restic takes no lock"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn we_honour_a_shared_lock_of_restic_and_see_when_it_is_stale() {
    let test = prepared();
    let mut child = start(&test, &["backup", "--stdin"]);
    let exclusive = test.repository.hold_lock(LockMode::Exclusive);
    let error = exclusive.unwrap_err();
    assert!(
        matches!(&error, Error::Locked { pid, .. } if *pid == child.id()),
        "{error:?}"
    );
    assert!(error.to_string().contains("stale"), "{error}");
    // Sharing is fine.
    test.backup(&TestImage::new(noise(2, 1000)), &grain(4));
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(child.wait().unwrap().success());

    let mut child = start(&test, &["backup", "--stdin"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let locks = test.repository.locks().unwrap();
    assert!(locks.iter().all(|lock| lock.stale), "{locks:?}");
    drop(test.repository.hold_lock(LockMode::Exclusive).unwrap());
    assert_eq!(test.repository.remove_stale_locks().unwrap(), 1);
    test.check();
}

#[test]
fn we_honour_an_exclusive_lock_of_restic() {
    let test = prepared();
    let mut child = start(&test, &["check"]);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    let exclusive = test
        .repository
        .locks()
        .unwrap()
        .iter()
        .any(|lock| lock.exclusive);
    let ours = test.repository.start_backup(&small());
    kill_process(pid, Signal::CONT).unwrap();
    child.wait().unwrap();
    assert!(exclusive);
    assert!(
        matches!(
            ours,
            Err(Error::Locked {
                exclusive: true,
                ..
            })
        ),
        "{ours:?}"
    );
    test.backup(&TestImage::new(noise(2, 1000)), &grain(4));
}

#[test]
fn a_lost_lock_loses_the_backup() {
    let test = prepared();
    let before = test.repository.snapshots().unwrap().snapshots.len();
    let backup = test.repository.start_backup(&small()).unwrap();
    backup.add_bytes("/a", b"a").unwrap();
    test.restic_ok(&["unlock", "--remove-all"]);
    let finished = backup.finish(meta());
    assert!(
        matches!(finished, Err(Error::LockLost { .. })),
        "{finished:?}"
    );
    assert_eq!(test.repository.snapshots().unwrap().snapshots.len(), before);
}

#[test]
fn dropping_and_aborting_leave_nothing() {
    let test = prepared();
    let before = test.repository.snapshots().unwrap().snapshots.len();
    for abort in [false, true] {
        let backup = test.repository.start_backup(&small()).unwrap();
        backup.add_bytes("/a", &noise(3, 3 << 20)).unwrap();
        if abort {
            backup.abort();
        } else {
            drop(backup);
        }
        assert!(test.repository.locks().unwrap().is_empty());
    }
    assert_eq!(test.repository.snapshots().unwrap().snapshots.len(), before);
    test.check();
}
