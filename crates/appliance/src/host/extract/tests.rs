//! Hostile and honest streams.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn entry(name: &[u8], kind: EntryKind, size_bytes: u64) -> Entry {
    Entry {
        name: Name(name.to_vec()),
        kind,
        size_bytes,
        mode: 0o4755,
        uid: 1,
        gid: 1,
        mtime_s: 1_000_000,
        mtime_ns: 5,
        target: None,
    }
}

fn file(name: &[u8], size: u64) -> Reply {
    Reply::File(entry(name, EntryKind::File, size))
}

fn folder(name: &[u8]) -> Reply {
    Reply::Enter(entry(name, EntryKind::Folder, 0))
}

fn link(name: &[u8], to: &[u8]) -> Reply {
    Reply::Link(Entry {
        target: Some(Name(to.to_vec())),
        ..entry(name, EntryKind::Link, 0)
    })
}

const END: Reply = Reply::FileEnd { error: None };

/// Applies replies in a folder, as `out`, until one is refused.
fn extract(dir: &Path, replies: Vec<Reply>) -> Result<Extracted, ApplianceError> {
    let mut progress = |_: &Extracted| {};
    let mut extraction = Extraction::new(dir, Name(b"out".to_vec()), false, &mut progress)?;
    for reply in replies {
        let data = matches!(reply, Reply::File(_));
        extraction.reply(reply)?;
        if data {
            extraction.data(2, b"xy")?;
        }
    }
    extraction.finish()
}

#[test]
fn a_tree() {
    let dir = tempfile::tempdir().unwrap();
    let skipped = Reply::Skipped {
        name: Name(b"pipe".to_vec()),
        why: "no".into(),
    };
    let replies = vec![
        folder(b"any"),
        file(b"a", 6),
        END,
        folder(b"sub"),
        skipped,
        link(b"l", b"/etc/passwd"),
        Reply::Leave,
        Reply::Leave,
    ];
    let done = extract(dir.path(), replies).unwrap();
    assert_eq!(
        (done.files, done.folders, done.links, done.bytes),
        (1, 2, 1, 2)
    );
    assert_eq!(
        done.skipped,
        [(Name(b"out/sub/pipe".to_vec()), "no".into())]
    );
    let made = dir.path().join("out/a");
    assert_eq!(std::fs::read(&made).unwrap(), b"\0\0xy\0\0");
    let meta = std::fs::metadata(&made).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000, 5));
    let to = std::fs::read_link(dir.path().join("out/sub/l")).unwrap();
    assert_eq!(to, Path::new("/etc/passwd"));
}

/// Each of these must be refused, with nothing outside of `out`.
#[test]
fn nonsense_is_refused() {
    let streams: Vec<Vec<Reply>> = vec![
        vec![],
        vec![folder(b"x")],
        vec![folder(b"x"), Reply::Leave, Reply::Leave],
        vec![folder(b"x"), file(b"../evil", 9)],
        vec![folder(b"x"), file(b"..", 9)],
        vec![folder(b"x"), file(b"/evil", 9)],
        vec![folder(b"x"), folder(b"a/b")],
        vec![folder(b"x"), link(b"../evil", b"a")],
        // A link, and then a file through it.
        vec![folder(b"x"), link(b"l", b"/"), folder(b"l")],
        vec![folder(b"x"), link(b"l", b"/tmp/evil"), file(b"l", 9)],
        vec![folder(b"x"), link(b"l", b"")],
        vec![folder(b"x"), file(b"a", 3)],
        vec![folder(b"x"), file(b"a", 9), folder(b"b")],
        vec![folder(b"x"), file(b"a", 9), Reply::Leave],
        vec![file(b"x", 9), END, file(b"y", 9)],
        vec![END],
        vec![Reply::Ready],
    ];
    for (number, stream) in streams.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        assert!(extract(dir.path(), stream).is_err(), "stream {number}");
        let made = std::fs::read_dir(dir.path()).unwrap();
        assert!(
            made.flatten().all(|entry| entry.file_name() == "out"),
            "stream {number}"
        );
    }
}

#[test]
fn folders_have_a_greatest_depth() {
    let dir = tempfile::tempdir().unwrap();
    let replies = (0..=MAX_DEPTH).map(|_| folder(b"d")).collect();
    assert!(extract(dir.path(), replies).is_err());
}

#[test]
fn data_comes_in_order_and_within_the_file() {
    for (first, second) in [((0, 4), (2, 2)), ((0, 4), (5, 4)), ((u64::MAX, 1), (0, 0))] {
        let dir = tempfile::tempdir().unwrap();
        let mut progress = |_: &Extracted| {};
        let name = Name(b"out".to_vec());
        let mut extraction = Extraction::new(dir.path(), name, false, &mut progress).unwrap();
        extraction.reply(file(b"f", 8)).unwrap();
        let mut data = |(at, len): (u64, usize)| extraction.data(at, &b"abcdefgh"[..len]);
        assert!(data(first).and_then(|()| data(second)).is_err());
    }
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let name = || prop::sample::select(vec![&b"a"[..], b"b", b"..", b"a/b", b"", b"/"]);
    prop_oneof![
        name().prop_map(folder),
        name().prop_map(|n| file(n, 8)),
        (name(), name()).prop_map(|(n, to)| link(n, to)),
        Just(Reply::Leave),
        Just(END),
        Just(Reply::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever is said, what is made is below `out`.
    #[test]
    fn nothing_leaves_the_target(replies in prop::collection::vec(any_reply(), 0..20)) {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("target");
        std::fs::create_dir(&dir).unwrap();
        let _ = extract(&dir, replies);
        prop_assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 1);
        let made = std::fs::read_dir(&dir).unwrap();
        prop_assert!(made.flatten().all(|entry| entry.file_name() == "out"));
    }
}
