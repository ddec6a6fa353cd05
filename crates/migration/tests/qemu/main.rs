//! Against a real QEMU: a guest that counts is captured, its stream is taken apart and made
//! again, and a second QEMU that loads the new stream goes on counting.
//!
//! Needs qemu-system-x86_64, busybox (static), cpio, gzip, a Linux kernel with modules of
//! virtio, and the right to use userfaultfd (root, or `vm.unprivileged_userfaultfd`).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail them"
)]

mod guest;
mod initramfs;

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use guest::Guest;
use vmtwin_migration::{FileBytes, Limits, RamSource, StreamIndex, rebuild};

/// Takes the stream apart and makes it again. Returns what was found in the first.
fn remake(from: &Path, to: &Path) -> StreamIndex {
    let stream = FileBytes::new(File::open(from).unwrap()).unwrap();
    let begun = Instant::now();
    let index = StreamIndex::parse(&stream, &Limits::default()).unwrap();
    println!(
        "{} bytes parsed in {:?}",
        fs::metadata(from).unwrap().len(),
        begun.elapsed()
    );
    let bytes = fs::read(from).unwrap();
    let piece = |range: std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
    // RAM goes through flat images, as it does through a backup.
    let images: Vec<Vec<u8>> = (0..index.blocks().len())
        .map(|block| {
            let image = index.image(&stream, block).unwrap();
            let mut flat = vec![0; image.size_bytes() as usize];
            image.read_at(0, &mut flat).unwrap();
            flat
        })
        .collect();
    let sources: Vec<&dyn RamSource> = images.iter().map(|image| image as _).collect();
    let mut out = File::create(to).unwrap();
    let begun = Instant::now();
    let (head, tail) = (piece(index.head()), piece(index.tail()));
    let done = rebuild(head, index.layout(), &sources, tail, &mut out).unwrap();
    println!("made again in {:?}: {done:?}", begun.elapsed());

    let again = FileBytes::new(File::open(to).unwrap()).unwrap();
    let index_again = StreamIndex::parse(&again, &Limits::default()).unwrap();
    assert_eq!(index_again.layout(), index.layout());
    for (block, expected) in images.iter().enumerate() {
        let mut flat = vec![1; expected.len()];
        index_again
            .image(&again, block)
            .unwrap()
            .read_at(0, &mut flat)
            .unwrap();
        assert!(flat == *expected, "RAM block {block} differs");
    }
    index
}

fn main_memory(index: &StreamIndex) -> u64 {
    let main = index.blocks().iter().find(|block| block.id == "pc.ram");
    main.map_or(0, |block| block.size_bytes)
}

#[test]
fn a_guest_goes_on_from_a_stream_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let files = initramfs::build(dir.path());
    let at = |name: &str| dir.path().join(name);

    let mut first = Guest::start(&files, dir.path(), "first", None);
    let before = first.wait_for_count(3);
    first.execute(
        "migrate-set-capabilities",
        r#"{"capabilities":[{"capability":"background-snapshot","state":true}]}"#,
    );
    first.migrate_to(&at("snapshot"));
    let after = first.wait_for_count(before + 2);
    first.quit();

    let index = remake(&at("snapshot"), &at("snapshot-again"));
    assert_eq!(main_memory(&index), guest::RAM_MIB << 20);
    assert!(
        !index.layout().end_section,
        "a background snapshot has no end of RAM"
    );

    let mut second = Guest::start(&files, dir.path(), "second", Some(&at("snapshot-again")));
    second.wait_until_running(Duration::from_secs(30));
    let resumed = second.first_count();
    println!("captured between {before} and {after}, went on at {resumed}");
    assert!(
        resumed > before && resumed <= after + 1,
        "not the state of the capture"
    );
    second.wait_for_count(resumed + 2);

    // An ordinary migration has an end of RAM, and pages that were sent twice.
    second.migrate_to(&at("migration"));
    let stopped = second.last_count();
    second.quit();
    let index = remake(&at("migration"), &at("migration-again"));
    assert!(index.layout().end_section, "a migration has an end of RAM");
    let mut third = Guest::start(&files, dir.path(), "third", Some(&at("migration-again")));
    third.wait_until_running(Duration::from_secs(30));
    let resumed = third.first_count();
    assert!(
        resumed == stopped + 1 || resumed == stopped + 2,
        "{stopped}, then {resumed}"
    );
    third.wait_for_count(stopped + 3);
    third.quit();
}

#[test]
fn a_stream_of_firmware_alone_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("stream");
    let mut guest = Guest::start_bare(dir.path(), &["-machine", "q35", "-device", "virtio-vga"]);
    guest.migrate_to(&out);
    guest.quit();
    let index = remake(&out, &dir.path().join("again"));
    assert!(index.blocks().len() > 3, "{:?}", index.blocks());
}
