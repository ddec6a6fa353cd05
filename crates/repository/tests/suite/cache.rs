//! The copy of the index: what it saves, and that it never tells of what is not there.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use vmtwin_repository::faulty::{Damage, DamageForm, Limits};
use vmtwin_repository::{
    Error, ImageStats, Kind, NoProgress, Password, PruneOptions, Repository, Snapshot,
};

use crate::common::{
    PASSWORD, Quiet, TestImage, TestRepository, TestSink, files, grain, meta, noise, small,
};

/// Enough grains of 4 KiB that the index is worth a copy.
const IMAGE_BYTES: usize = 44 << 20;

fn cached(test: &TestRepository) -> Repository {
    let repository = Repository::open_with(Arc::clone(&test.store) as _, &Password::from(PASSWORD));
    repository
        .unwrap()
        .with_cache(&test.folder.path().join("cache"))
}

fn copy(test: &TestRepository) -> Vec<PathBuf> {
    files(&test.folder.path().join("cache"))
}

fn backup(repository: &Repository, image: &TestImage) -> Result<(Snapshot, ImageStats), Error> {
    let backup = repository.start_backup(&small())?;
    let stats = backup.add_image("/disks/vda", image, &grain(4), &Quiet::default())?;
    Ok((backup.finish(meta())?, stats))
}

fn assert_restores(repository: &Repository, snapshot: &Snapshot, image: &TestImage) {
    let reader = repository.reader(snapshot).unwrap();
    let stored = reader.open_image("/disks/vda").unwrap();
    let sink = TestSink::new(stored.size_bytes());
    stored.copy_to(&sink, &Quiet::default()).unwrap();
    assert!(sink.0.into_inner().unwrap() == image.data);
}

/// Lets nobody read an index file.
fn hide_index(test: &TestRepository) {
    test.store.set_limits(Limits {
        damage: Some(Damage {
            kind: Kind::Index,
            form: DamageForm::Truncated(10),
        }),
        ..Limits::default()
    });
}

#[test]
fn index_files_in_the_copy_are_not_read_again() {
    let test = TestRepository::new();
    let image = TestImage::new(noise(1, IMAGE_BYTES));
    let (snapshot, _) = backup(&test.repository, &image).unwrap();
    let repository = cached(&test);
    assert_restores(&repository, &snapshot, &image);
    assert_eq!(copy(&test).len(), 1);

    hide_index(&test);
    assert!(matches!(
        test.repository.reader(&snapshot),
        Err(Error::Damaged { .. })
    ));
    assert_restores(&repository, &snapshot, &image);
    let (_, stats) = backup(&repository, &image).unwrap();
    assert_eq!(stats.chunks_new, 0);

    // What others add is read.
    test.store.set_limits(Limits::default());
    let other = TestImage::new(noise(2, 1 << 20));
    backup(&test.repository, &other).unwrap();
    let (snapshot, stats) = backup(&repository, &other).unwrap();
    assert_eq!(stats.chunks_new, 0);
    assert_restores(&repository, &snapshot, &other);
    test.check();
}

#[test]
fn a_damaged_copy_is_made_again() {
    let test = TestRepository::new();
    let image = TestImage::new(noise(1, IMAGE_BYTES));
    backup(&test.repository, &image).unwrap();
    drop(cached(&test).start_backup(&small()).unwrap());
    let [path] = &copy(&test)[..] else {
        panic!("no copy");
    };
    let whole = fs::read(path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let damages = [Vec::new(), whole[..whole.len() - 1].to_vec(), flipped];
    for damaged in damages {
        fs::write(path, &damaged).unwrap();
        let (_, stats) = backup(&cached(&test), &image).unwrap();
        assert_eq!(stats.chunks_new, 0);
        assert!(
            fs::read(path).unwrap().len() >= whole.len(),
            "not made again"
        );
    }
    // One of another repository, in the place of this.
    let other = TestRepository::new();
    backup(&other.repository, &image).unwrap();
    drop(cached(&other).start_backup(&small()).unwrap());
    fs::copy(&copy(&other)[0], path).unwrap();
    let (snapshot, stats) = backup(&cached(&test), &image).unwrap();
    assert_eq!(stats.chunks_new, 0);
    assert_restores(&test.repository, &snapshot, &image);
    test.check();
}

#[test]
fn what_was_pruned_is_stored_again() {
    let test = TestRepository::new();
    let image = TestImage::new(noise(1, IMAGE_BYTES));
    // Needs a part of a pack, which moves to a new one.
    let kept = TestImage::new(image.data[..500_000].to_vec());
    let (first, _) = backup(&test.repository, &image).unwrap();
    let (second, _) = backup(&test.repository, &kept).unwrap();
    drop(cached(&test).start_backup(&small()).unwrap());
    test.repository.remove_snapshot(&first.id).unwrap();
    let no_waste = PruneOptions {
        max_unused_percent: 0.0,
        ..PruneOptions::default()
    };
    test.repository.prune(&no_waste, &NoProgress).unwrap();
    assert_restores(&cached(&test), &second, &kept);
    let (snapshot, stats) = backup(&cached(&test), &image).unwrap();
    assert!(stats.chunks_new > stats.chunks * 9 / 10);
    assert_restores(&test.repository, &snapshot, &image);
    test.check();
}

/// Somebody removed packs and left the index: the copy believes it no more than a backup does.
#[test]
fn packs_that_are_gone_are_stored_again() {
    let test = TestRepository::new();
    let image = TestImage::new(noise(1, IMAGE_BYTES));
    backup(&test.repository, &image).unwrap();
    drop(cached(&test).start_backup(&small()).unwrap());
    for pack in files(&test.path().join("data")).iter().step_by(2) {
        fs::remove_file(pack).unwrap();
    }
    let (snapshot, stats) = backup(&cached(&test), &image).unwrap();
    assert!(stats.chunks_new > 0 && stats.chunks_new < stats.chunks);
    assert_restores(&test.repository, &snapshot, &image);
}
