//! Images: deduplication, incremental backups, random reads, parallel runs.

use std::sync::Arc;

use crate::common::{Quiet, TestImage, TestRepository, TestSink, grain, meta, noise, small};
use proptest::prelude::*;
use vmtwin_repository::{
    Error, ExtentKind, Image, ImageOptions, IngestOptions, ParentImage, Snapshot, SparseFile,
};

fn open(test: &TestRepository, snapshot: &Snapshot) -> Image {
    test.repository
        .reader(snapshot)
        .unwrap()
        .open_image("/disks/vda")
        .unwrap()
}

fn open_parent(test: &TestRepository, snapshot: &Snapshot) -> Arc<ParentImage> {
    let reader = test.repository.reader(snapshot).unwrap();
    Arc::new(reader.open_parent("/disks/vda").unwrap())
}

fn whole(image: &Image) -> Vec<u8> {
    let mut data = vec![1; image.size_bytes() as usize];
    image.read_at(0, &mut data).unwrap();
    data
}

#[test]
fn a_second_backup_stores_nothing() {
    let test = TestRepository::new();
    let image = TestImage::mixed(7, 20 << 20);
    let first = test.backup(&image, &grain(64));
    let packs = test.packs();
    let backup = test.repository.start_backup(&small()).unwrap();
    let stats = backup
        .add_image("/disks/vda", &image, &grain(64), &Quiet::default())
        .unwrap();
    assert_eq!(
        (stats.bytes_new, stats.bytes_stored, stats.chunks_new),
        (0, 0, 0)
    );
    backup.add_bytes("/machine.json", b"{}").unwrap();
    let second = backup.finish(meta()).unwrap();
    assert_eq!(second.tree, first.tree);
    assert_eq!(test.packs(), packs);
}

#[test]
fn reads_at_random_places() {
    let test = TestRepository::new();
    let image = TestImage::mixed(8, (6 << 20) + 77);
    let stored = open(&test, &test.backup(&image, &grain(64)));
    assert_eq!(stored.size_bytes(), image.data.len() as u64);
    let mut runner = proptest::test_runner::TestRunner::default();
    let ranges = (0..image.data.len(), 0..300_000usize);
    runner
        .run(&ranges, |(start, length)| {
            let end = (start + length).min(image.data.len());
            let mut buf = vec![1; end - start];
            stored.read_at(start as u64, &mut buf).unwrap();
            prop_assert!(buf == image.data[start..end]);
            let extent = stored.extent_at(start as u64);
            let known_zero = extent.kind == ExtentKind::Zero;
            let until = start + extent.len as usize;
            prop_assert!(!known_zero || image.data[start..until].iter().all(|b| *b == 0));
            Ok(())
        })
        .unwrap();
    let end = stored.size_bytes();
    assert_eq!(stored.extent_at(end).len, 0);
    let tail = stored.extent_at(end - 1);
    assert_eq!((tail.kind, tail.len), (ExtentKind::Zero, 1));
    assert!(matches!(
        stored.read_at(end, &mut [0]),
        Err(Error::InvalidOption { .. })
    ));
    assert!(matches!(
        stored.read_at(u64::MAX, &mut [0; 2]),
        Err(Error::InvalidOption { .. })
    ));
}

#[test]
fn copies_write_only_what_is_not_zero() {
    let test = TestRepository::new();
    let mut image = TestImage::mixed(9, 12 << 20);
    let (front, back) = image.data.split_at_mut(1 << 20);
    back[..1 << 20].copy_from_slice(front);
    let stored = open(&test, &test.backup(&image, &grain(64)));
    let progress = Quiet::default();
    let sink = TestSink::new(stored.size_bytes());
    let stats = stored.copy_to(&sink, &progress).unwrap();
    assert!(sink.0.into_inner().unwrap() == image.data);
    assert_eq!(stats.bytes_total, 12 << 20);
    assert!(stats.bytes_written <= (8 << 20) + (64 << 10), "{stats:?}");
    assert!(stats.bytes_fetched < stats.bytes_written, "{stats:?}");
    assert_eq!(progress.processed.into_inner(), 12 << 20);

    let cancelled = Quiet::default();
    cancelled
        .cancel
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let sink = TestSink::new(stored.size_bytes());
    // Either it was done before the first look, or it was cancelled.
    let result = stored.copy_to(&sink, &cancelled);
    assert!(
        matches!(result, Ok(_) | Err(Error::Cancelled)),
        "{result:?}"
    );
}

/// Three generations by dirty extents: only changed grains are read, a grain that changed is
/// stored in pieces, and its next change reads and stores pieces only.
#[test]
fn incremental_backups_read_and_store_what_changed() {
    let test = TestRepository::new();
    let mut image = TestImage::mixed(10, 8 << 20);
    image.extents.clear();
    let first = test.backup(&image, &grain(64));
    let change = 1 << 20;
    for (generation, expected_new) in [(1, 64 << 10), (2, 4 << 10)] {
        let parent = match generation {
            1 => first.clone(),
            _ => test.repository.snapshot("latest").unwrap(),
        };
        image.data[change..change + 100].copy_from_slice(&noise(20 + generation, 100));
        let changed = change as u64;
        image.extents = vec![
            (changed, ExtentKind::Unchanged),
            (changed + 512, ExtentKind::Data),
            (8 << 20, ExtentKind::Unchanged),
        ];
        let mut options = grain(64);
        options.parent = Some(open_parent(&test, &parent));
        let backup = test.repository.start_backup(&small()).unwrap();
        let stats = backup
            .add_image("/disks/vda", &image, &options, &Quiet::default())
            .unwrap();
        assert_eq!(stats.bytes_read, expected_new, "generation {generation}");
        assert_eq!(stats.bytes_new, expected_new, "generation {generation}");
        let snapshot = backup.finish(meta()).unwrap();
        drop(options);
        assert!(
            whole(&open(&test, &snapshot)) == image.data,
            "generation {generation}"
        );
    }
    test.check();
}

/// Groups of segments are read and written one by one: an image of several, changed in some.
#[test]
fn increments_of_a_long_image() {
    let test = TestRepository::new();
    let length = 75 << 20;
    let mut image = TestImage::new(vec![0; length]);
    image.data[5 << 20..7 << 20].copy_from_slice(&noise(30, 2 << 20));
    image.data[length - 5000..].copy_from_slice(&noise(31, 5000));
    let mut parent = test.backup(&image, &grain(4));
    for (round, at) in [(0, 16 << 20), (1, (32 << 20) - 6000), (2, length - 9000)] {
        image.data[at..at + 9000].copy_from_slice(&noise(40 + round, 9000));
        let changed = at as u64;
        image.extents = vec![
            (changed, ExtentKind::Unchanged),
            (changed + 9000, ExtentKind::Data),
            (length as u64, ExtentKind::Unchanged),
        ];
        let mut options = grain(4);
        options.parent = Some(open_parent(&test, &parent));
        let backup = test.repository.start_backup(&small()).unwrap();
        let stats = backup
            .add_image("/disks/vda", &image, &options, &Quiet::default())
            .unwrap();
        assert!(stats.bytes_read <= 9000 + 2 * 4096, "{stats:?}");
        assert_eq!(stats.bytes_total, length as u64);
        parent = backup.finish(meta()).unwrap();
        assert!(whole(&open(&test, &parent)) == image.data, "round {round}");
    }
    test.check();
}

#[test]
fn a_parent_that_cannot_serve_means_reading_everything() {
    let test = TestRepository::new();
    let mut image = TestImage::mixed(11, 3 << 20);
    image.extents = vec![(3 << 20, ExtentKind::Unchanged)];
    let parent = test.backup(&TestImage::new(noise(1, 1 << 20)), &grain(32));
    let mut options = grain(64);
    let none = test.repository.start_backup(&small()).unwrap();
    let stats = none
        .add_image("/a", &image, &options, &Quiet::default())
        .unwrap();
    assert_eq!(stats.bytes_read, 3 << 20);
    options.parent = Some(open_parent(&test, &parent));
    let stats = none
        .add_image("/disks/vda", &image, &options, &Quiet::default())
        .unwrap();
    assert_eq!(stats.bytes_read, 3 << 20);
    let snapshot = none.finish(meta()).unwrap();
    assert!(whole(&open(&test, &snapshot)) == image.data);
}

/// Grains, pieces, parents and dirty extents at random, judged by reading back.
#[test]
fn any_chain_of_increments_reads_back() {
    let test = TestRepository::new();
    let length = 300_001usize;
    let step = (
        0..length,
        1..50_000usize,
        prop_oneof![Just(0u8), any::<u8>()],
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 6,
        ..ProptestConfig::default()
    });
    let chains = proptest::collection::vec(step, 1..4);
    runner
        .run(&chains, |chain| {
            let mut image = TestImage::new(noise(3, length));
            let mut parent = test.backup(&image, &grain(16));
            for (start, size, fill) in chain {
                let end = (start + size).min(length);
                image.data[start..end].fill(fill);
                image.extents = vec![
                    (start as u64, ExtentKind::Unchanged),
                    (
                        end as u64,
                        if fill == 0 {
                            ExtentKind::Zero
                        } else {
                            ExtentKind::Data
                        },
                    ),
                    (length as u64, ExtentKind::Unchanged),
                ];
                let mut options = grain(16);
                options.parent = Some(open_parent(&test, &parent));
                parent = test.backup(&image, &options);
                prop_assert!(whole(&open(&test, &parent)) == image.data);
            }
            Ok(())
        })
        .unwrap();
    test.check();
}

#[test]
fn two_backups_at_once() {
    let test = TestRepository::new();
    let images = [TestImage::mixed(12, 8 << 20), TestImage::mixed(13, 8 << 20)];
    let snapshots = std::thread::scope(|scope| {
        let runs = [0, 1].map(|n| {
            let (test, images) = (&test, &images);
            scope.spawn(move || test.backup(&images[n], &grain(64)))
        });
        runs.map(|run| run.join().unwrap())
    });
    for (snapshot, image) in snapshots.iter().zip(&images) {
        assert!(whole(&open(&test, snapshot)) == image.data);
    }
    // And two images of one backup at once.
    let backup = test.repository.start_backup(&small()).unwrap();
    std::thread::scope(|scope| {
        for (dir, image) in [("/a", &images[0]), ("/b", &images[1])] {
            let backup = &backup;
            scope.spawn(move || {
                backup
                    .add_image(dir, image, &grain(32), &Quiet::default())
                    .unwrap();
            });
        }
    });
    backup.finish(meta()).unwrap();
    test.check();
}

#[test]
fn a_sparse_file_is_a_source_and_a_target() {
    let test = TestRepository::new();
    let path = test.folder.path().join("image");
    let size = 5 << 20;
    let file = SparseFile::create(&path, size).unwrap();
    let data = noise(14, 100_000);
    vmtwin_repository::ImageSink::write_at(&file, 2 << 20, &data).unwrap();
    let backup = test.repository.start_backup(&small()).unwrap();
    let options = ImageOptions::default();
    let stats = backup
        .add_image("/disks/vda", &file, &options, &Quiet::default())
        .unwrap();
    assert!(stats.bytes_read <= 1 << 20, "{stats:?}");
    let snapshot = backup.finish(meta()).unwrap();
    let copy_path = test.folder.path().join("copy");
    let copy = SparseFile::create(&copy_path, size).unwrap();
    open(&test, &snapshot)
        .copy_to(&copy, &Quiet::default())
        .unwrap();
    assert!(std::fs::read(&copy_path).unwrap() == std::fs::read(&path).unwrap());
}

#[test]
fn options_out_of_range_are_refused() {
    let test = TestRepository::new();
    for options in [
        IngestOptions {
            zstd_level: 20,
            ..small()
        },
        IngestOptions {
            pack_bytes: 0,
            ..small()
        },
        IngestOptions {
            pack_buffers: 2,
            ..small()
        },
        IngestOptions {
            lanes: 0,
            ..small()
        },
    ] {
        let refused = test.repository.start_backup(&options);
        assert!(
            matches!(refused, Err(Error::InvalidOption { .. })),
            "{options:?}"
        );
    }
    for (grain_bytes, piece_bytes) in [
        (0, None),
        (5000, None),
        (16 << 20, None),
        (1 << 20, Some(4096)),
    ] {
        let options = ImageOptions {
            grain_bytes,
            piece_bytes,
            parent: None,
        };
        let backup = test.repository.start_backup(&small()).unwrap();
        let image = TestImage::new(vec![1]);
        let refused = backup.add_image("/a", &image, &options, &Quiet::default());
        assert!(
            matches!(refused, Err(Error::InvalidOption { .. })),
            "{options:?}"
        );
    }
    for path in ["a", "/", "/a/../b", "/a\0"] {
        let backup = test.repository.start_backup(&small()).unwrap();
        let refused = backup.add_bytes(path, b"");
        assert!(matches!(refused, Err(Error::InvalidPath { .. })), "{path}");
    }
}
