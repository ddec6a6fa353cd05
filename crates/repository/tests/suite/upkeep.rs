//! Prune, check, repair, copy and usage, with stock restic as the judge.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Quiet, TestImage, TestRepository, TestSink, files, grain, meta, noise, small};
use vmtwin_repository::faulty::Limits;
use vmtwin_repository::{
    Error, IngestOptions, LockMode, NoProgress, PruneOptions, Repository, Snapshot,
};

fn restored(repository: &Repository, snapshot: &Snapshot) -> Result<Vec<u8>, Error> {
    let image = repository.reader(snapshot)?.open_image("/disks/vda")?;
    let sink = TestSink::new(image.size_bytes());
    image.copy_to(&sink, &Quiet::default())?;
    Ok(sink.0.into_inner().unwrap())
}

fn assert_restores(repository: &Repository, model: &[(Snapshot, TestImage)]) {
    for (snapshot, image) in model {
        let data = restored(repository, snapshot).unwrap();
        assert!(data == image.data, "snapshot {}", snapshot.id);
    }
}

/// An image of which every third 64 KiB differ from those of other seeds.
fn developed(seed: u64) -> TestImage {
    let mut data = noise(7, 3 << 20);
    for at in (0..data.len()).step_by(192 << 10) {
        data[at..at + (64 << 10)].copy_from_slice(&noise(seed + at as u64, 64 << 10));
    }
    TestImage::new(data)
}

/// Snapshots of the seeds.
fn filled(test: &TestRepository, seeds: std::ops::Range<u64>) -> Vec<(Snapshot, TestImage)> {
    seeds
        .map(|seed| {
            let image = developed(seed);
            (test.backup(&image, &grain(64)), image)
        })
        .collect()
}

fn no_waste() -> PruneOptions {
    PruneOptions {
        max_unused_percent: 0.0,
        ..PruneOptions::default()
    }
}

#[test]
fn prune_frees_what_nothing_needs_and_nothing_else() {
    let test = TestRepository::new();
    let mut model = filled(&test, 0..4);
    let gone: Vec<String> = [0, 2].iter().map(|at| model[*at].0.id.clone()).collect();
    test.repository.remove_snapshots(&gone).unwrap();
    model.retain(|(snapshot, _)| !gone.contains(&snapshot.id));

    let dry = PruneOptions {
        dry_run: true,
        ..no_waste()
    };
    let before = files(&test.path());
    let plan = test.repository.prune(&dry, &NoProgress).unwrap();
    assert_eq!(files(&test.path()), before, "a dry run changes nothing");
    assert!(plan.bytes_freed > 1 << 20, "{plan:?}");

    let done = test.repository.prune(&no_waste(), &NoProgress).unwrap();
    let near = done.bytes_freed.abs_diff(plan.bytes_freed);
    assert!(near < 64 << 10, "planned {plan:?}, done {done:?}");
    assert!(done.packs_repacked > 0 && done.waits_for.is_none());
    test.check();
    assert_restores(&test.repository, &model);
    let again = test.repository.prune(&no_waste(), &NoProgress).unwrap();
    assert_eq!((again.bytes_unused, again.packs_removed), (0, 0));
    // Restic agrees that nothing is left to do.
    let restic = test.restic_ok(&["prune", "--max-unused", "0"]);
    let restic = String::from_utf8(restic).unwrap();
    let words: Vec<&str> = restic.split_whitespace().collect();
    assert!(words.join(" ").contains("total prune: 0 blobs"), "{restic}");
    assert_restores(&test.repository, &model);
}

#[test]
fn prune_beside_a_backup_removes_nothing_and_the_next_one_does() {
    let test = TestRepository::new();
    let mut model = filled(&test, 0..2);
    let (gone, image) = model.remove(0);
    test.repository.remove_snapshot(&gone.id).unwrap();
    // This backup found its blobs in what the prune finds unused.
    let backup = test.repository.start_backup(&small()).unwrap();
    backup
        .add_image("/disks/vda", &image, &grain(64), &NoProgress)
        .unwrap();
    let report = test.repository.prune(&no_waste(), &NoProgress).unwrap();
    assert!(report.waits_for.is_some(), "{report:?}");
    assert_eq!((report.packs_removed, report.bytes_freed), (0, 0));
    model.push((backup.finish(meta()).unwrap(), image));
    test.check();
    assert_restores(&test.repository, &model);
    let report = test.repository.prune(&no_waste(), &NoProgress).unwrap();
    assert!(report.waits_for.is_none());
    test.check();
    assert_restores(&test.repository, &model);
}

/// Prunes on a store that fails after so many changes; gives how many there were.
fn prune_killed_at(step: Option<u64>) -> u64 {
    let test = TestRepository::new();
    let mut model = filled(&test, 0..3);
    // The oldest: others share its packs, so these are repacked.
    let (gone, _) = model.remove(0);
    test.repository.remove_snapshot(&gone.id).unwrap();
    test.store.set_limits(Limits {
        fail_after_ops: step,
        ..Limits::default()
    });
    let result = test.repository.prune(&no_waste(), &NoProgress);
    let ops = test.store.ops();
    test.store.set_limits(Limits::default());
    test.wait_for_no_locks();
    assert!(step.is_some() || result.unwrap().packs_repacked > 0);
    let report = test.repository.check(100.0, &NoProgress).unwrap();
    assert!(report.is_good(), "{step:?}: {report:?}");
    assert_restores(&test.repository, &model);
    // Restic or we: whoever is next cleans up.
    if step.is_some_and(|step| step % 4 == 0) {
        test.check();
        test.restic_ok(&["prune", "--max-unused", "0"]);
    } else {
        test.repository.prune(&no_waste(), &NoProgress).unwrap();
    }
    assert_restores(&test.repository, &model);
    let left = test.repository.prune(&no_waste(), &NoProgress).unwrap();
    assert_eq!((left.bytes_unused, left.packs_removed), (0, 0));
    ops
}

#[test]
fn prune_that_is_killed_anywhere_loses_nothing() {
    let steps = prune_killed_at(None);
    assert!(steps > 8, "a prune of {steps} steps shows little");
    // Most of the time is spent waiting for locks to be released on the store that failed.
    std::thread::scope(|scope| {
        for lane in 0..8 {
            scope.spawn(move || {
                for step in (lane..steps).step_by(8) {
                    prune_killed_at(Some(step));
                }
            });
        }
    });
}

#[test]
fn prune_refuses_what_is_damaged() {
    let test = TestRepository::new();
    filled(&test, 0..1);
    let pack = files(&test.path().join("data")).remove(0);
    std::fs::remove_file(pack).unwrap();
    let before = files(&test.path());
    let error = test.repository.prune(&no_waste(), &NoProgress).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    test.wait_for_no_locks();
    assert_eq!(files(&test.path()), before);
}

/// What is done to an object.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Deleted,
    Truncated,
    Flipped,
    Swapped,
}

fn harm(harm: Harm, victim: &Path, other: &Path) {
    let mut data = std::fs::read(victim).unwrap();
    std::fs::remove_file(victim).unwrap();
    match harm {
        Harm::Deleted => return,
        Harm::Truncated => data.truncate(data.len() / 2),
        Harm::Flipped => data[20] ^= 4,
        Harm::Swapped => data = std::fs::read(other).unwrap(),
    }
    std::fs::write(victim, data).unwrap();
}

/// Two guests that share nothing, in packs of their own; objects of the first backup come first.
fn two_guests(test: &TestRepository) -> (Vec<(Snapshot, TestImage)>, Vec<PathBuf>) {
    let mut model = Vec::new();
    let mut first = Vec::new();
    for seed in [1, 2] {
        let before = files(&test.path());
        let image = TestImage::new(noise(seed, 300 << 10));
        let backup = test.repository.start_backup(&small()).unwrap();
        backup
            .add_image("/disks/vda", &image, &grain(64), &NoProgress)
            .unwrap();
        let name = format!("/only-{seed}");
        backup.add_bytes(&name, &noise(seed + 9, 100)).unwrap();
        model.push((backup.finish(meta()).unwrap(), image));
        let mut new = files(&test.path());
        new.retain(|file| !before.contains(file));
        first.extend(new);
    }
    (model, first)
}

#[test]
fn check_names_exactly_what_each_damage_hurts_and_a_backup_heals_it() {
    for harmed in [Harm::Deleted, Harm::Truncated, Harm::Flipped, Harm::Swapped] {
        for folder in ["snapshots", "index", "data pack", "tree pack"] {
            let what = format!("{folder} {harmed:?}");
            let test = TestRepository::new();
            let (model, objects) = two_guests(&test);
            assert!(test.repository.check(100.0, &NoProgress).unwrap().is_good());
            let of_kind = |folder: &str| -> Vec<PathBuf> {
                let kind = folder
                    .split(' ')
                    .next_back()
                    .unwrap()
                    .replace("pack", "data");
                let mut found = objects.clone();
                found.retain(|p| p.strip_prefix(test.path()).unwrap().starts_with(&kind));
                found.sort_by_key(|p| std::fs::metadata(p).unwrap().len());
                match folder {
                    // Tree packs are the short ones.
                    "tree pack" => found.drain(..2).collect(),
                    "data pack" => found.split_off(2),
                    _ => found,
                }
            };
            let pair = of_kind(folder);
            assert_eq!(pair.len(), 2, "{what}");
            let at = |path: &PathBuf| objects.iter().position(|p| p == path).unwrap();
            let (victim, other) = match at(&pair[0]) < at(&pair[1]) {
                true => (&pair[0], &pair[1]),
                false => (&pair[1], &pair[0]),
            };
            harm(harmed, victim, other);

            let report = test.repository.check(100.0, &NoProgress).unwrap();
            let hurt: Vec<(&str, Vec<&str>)> = report
                .hurt
                .iter()
                .map(|h| (&*h.id, h.paths.iter().map(String::as_str).collect()))
                .collect();
            let deleted_snapshot = folder == "snapshots" && matches!(harmed, Harm::Deleted);
            let expected = match folder {
                _ if deleted_snapshot => vec![],
                "data pack" => vec![(&*model[0].0.id, hurt[0].1.clone())],
                // The flipped bit is in the first tree of the pack, that of the image.
                "tree pack" if matches!(harmed, Harm::Flipped) => {
                    vec![(&*model[0].0.id, vec!["/disks/vda"])]
                }
                _ => vec![(&*model[0].0.id, vec!["/"])],
            };
            assert_eq!(hurt, expected, "{what}");
            if folder == "data pack" {
                assert!(hurt[0].1.contains(&"/disks/vda"), "{what}: {hurt:?}");
            }
            assert_eq!(report.is_good(), deleted_snapshot, "{what}");

            test.repository.repair_index(true, &NoProgress).unwrap();
            assert_restores(&test.repository, &model[1..]);
            let again = test.backup(&model[0].1, &grain(64));
            assert!(restored(&test.repository, &again).unwrap() == model[0].1.data);
            if folder == "index" {
                assert_restores(&test.repository, &model);
                test.check();
            }
            if folder == "snapshots" && !deleted_snapshot {
                let id = model[0].0.id.clone();
                test.repository.remove_snapshots(&[id]).unwrap();
                test.check();
            }
        }
    }
}

#[test]
fn check_names_damaged_keys_and_locks() {
    let test = TestRepository::new();
    let model = filled(&test, 0..1);
    let lock = test.repository.hold_lock(LockMode::Shared).unwrap();
    let file = files(&test.path().join("locks")).remove(0);
    let data = std::fs::read(&file).unwrap();
    drop(lock);
    std::fs::write(&file, &data[..data.len() - 1]).unwrap();
    let report = test.repository.check(0.0, &NoProgress).unwrap();
    assert!(
        report.problems[0].object.starts_with("locks/"),
        "{report:?}"
    );
    assert!(report.hurt.is_empty());
    test.repository.repair_index(false, &NoProgress).unwrap();
    assert!(test.repository.check(0.0, &NoProgress).unwrap().is_good());

    let key = files(&test.path().join("keys")).remove(0);
    let data = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::fs::write(&key, &data[..data.len() - 1]).unwrap();
    let report = test.repository.check(0.0, &NoProgress).unwrap();
    assert!(report.problems[0].object.starts_with("keys/"), "{report:?}");
    assert_restores(&test.repository, &model);
}

#[test]
fn copy_is_complete_and_may_be_repeated_and_resumed() {
    let (from, to) = (TestRepository::new(), TestRepository::new());
    let model = filled(&from, 0..3);
    let list = from.repository.snapshots().unwrap().snapshots;
    let copy = |list: &[Snapshot]| {
        let options = IngestOptions::default();
        from.repository
            .copy_to(&to.repository, list, &options, &NoProgress)
    };
    // Interrupted after the first: the store fails.
    copy(&list[..1]).unwrap();
    to.store.set_limits(Limits {
        fail_after_ops: Some(3),
        ..Limits::default()
    });
    copy(&list).unwrap_err();
    to.store.set_limits(Limits::default());
    to.wait_for_no_locks();
    let copied = copy(&list).unwrap();
    let skipped: Vec<bool> = copied.iter().map(|c| c.skipped).collect();
    assert_eq!(skipped, [true, false, false]);
    to.check();
    for (copied, (snapshot, image)) in copied.iter().zip(&model) {
        let copy = to.repository.snapshot(&copied.copy).unwrap();
        assert_eq!(copy.original.as_ref(), Some(&snapshot.id));
        assert_eq!((copy.time, &copy.tags), (snapshot.time, &snapshot.tags));
        assert!(restored(&to.repository, &copy).unwrap() == image.data);
    }
    assert!(copy(&list).unwrap().iter().all(|c| c.skipped));
    // And back again: both are the same snapshot.
    let back = to.repository.snapshots().unwrap().snapshots;
    let options = IngestOptions::default();
    let back = to
        .repository
        .copy_to(&from.repository, &back, &options, &NoProgress);
    assert!(back.unwrap().iter().all(|c| c.skipped));
    let same = from
        .repository
        .copy_to(&from.repository, &list, &options, &NoProgress);
    assert!(matches!(same, Err(Error::InvalidOption { .. })));
}

#[test]
fn usage_adds_up() {
    let test = TestRepository::new();
    let model = filled(&test, 0..3);
    let group = |snapshot: &Snapshot| snapshot.tag("vm").map(str::to_owned);
    let usage = test.repository.usage(&group, &NoProgress).unwrap();
    let (name, list) = &usage.groups[0];
    assert_eq!((name.as_str(), list.len()), ("web01", 3));
    assert!(list.iter().all(|s| s.logical_bytes == (3 << 20) + 2));
    let added: u64 = list.iter().map(|s| s.added_stored_bytes).sum();
    assert_eq!(added, usage.used_stored_bytes);
    assert_eq!(usage.unused_bytes, 0);
    assert!(list[1].added_bytes > 1 << 20 && list[1].added_bytes < 3 << 19);
    test.repository.remove_snapshot(&model[2].0.id).unwrap();
    let less = test.repository.usage(&group, &NoProgress).unwrap();
    assert_eq!(less.unused_bytes, list[2].added_stored_bytes);
    let plan = PruneOptions {
        dry_run: true,
        ..no_waste()
    };
    let plan = test.repository.prune(&plan, &NoProgress).unwrap();
    assert_eq!(plan.bytes_unused, less.unused_bytes);
}

/// Backups, forgets, prunes, checks and restores at random beside one another, restic's among
/// them; in the end restic finds all whole and every snapshot is what it was made of.
#[test]
fn everybody_at_once() {
    let seconds = match std::env::var_os("VMTWIN_TEST_ALL") {
        Some(_) => 60,
        None => 6,
    };
    let test = TestRepository::new();
    let stop = Arc::new(AtomicBool::new(false));
    let busy = |error: Error| assert!(matches!(error, Error::Locked { .. }), "{error}");
    let model = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..2u64 {
            let (test, stop, model) = (&test, &stop, &model);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let image = developed((lane * 3 + round) % 5);
                    match test.repository.start_backup(&small()) {
                        Err(error) => busy(error),
                        Ok(backup) => {
                            let options = grain(64);
                            let dir = "/disks/vda";
                            backup
                                .add_image(dir, &image, &options, &NoProgress)
                                .unwrap();
                            let snapshot = backup.finish(meta()).unwrap();
                            model.lock().unwrap().push((snapshot, image));
                        }
                    }
                    std::thread::sleep(Duration::from_millis(30 + 40 * (round % 3)));
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let mut model = model.lock().unwrap();
                if model.len() > 2 {
                    match test.repository.remove_snapshots(&[model[0].0.id.clone()]) {
                        Ok(()) => drop(model.remove(0)),
                        Err(error) => busy(error),
                    }
                }
                drop(model);
                let wait = PruneOptions {
                    wait: Duration::from_millis(300),
                    ..no_waste()
                };
                test.repository
                    .prune(&wait, &NoProgress)
                    .map_or_else(busy, drop);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                match test.repository.check(100.0, &NoProgress) {
                    Ok(report) => assert!(report.is_good(), "{report:?}"),
                    Err(error) => busy(error),
                }
                // Fails cleanly where it is locked.
                test.restic(&["prune", "--max-unused", "0"]);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::SeqCst);
    });
    test.wait_for_no_locks();
    let model = model.into_inner().unwrap();
    assert!(!model.is_empty());
    assert_eq!(
        test.repository.snapshots().unwrap().snapshots.len(),
        model.len()
    );
    test.check();
    assert_restores(&test.repository, &model);
}
