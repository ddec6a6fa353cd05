//! Archives: the same parts are the same bytes, stock unzip reads them, and what anybody else made
//! of one is refused.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;
use time::macros::datetime;
use vmtwin_cluster::manifest::{
    Cluster, Database, FORMAT, HeldSecrets, Node, NodeState, Sealed, VERSION,
};
use vmtwin_cluster::{Archive, EntryPath, Error, Manifest, NodeName, Parts};
use vmtwin_testkit::run;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const DATABASE: &[u8] = b"{\"format\":\"vmtwin-database\"}\n";

fn node(name: &str, state: NodeState) -> Node {
    Node {
        name: name.parse().unwrap(),
        id: "6ba7b810-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        state,
        as_of: (state != NodeState::Missing).then_some(datetime!(2026-11-22 19:22:41 UTC)),
        error: (state != NodeState::Collected).then(|| "does not answer".to_owned()),
        secrets: None,
    }
}

fn manifest() -> Manifest {
    Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        cluster: Cluster {
            id: "f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned(),
            name: "lab".to_owned(),
        },
        time: datetime!(2026-11-22 19:22:41 UTC),
        program: "0.1.0".to_owned(),
        coordinator: "node1".parse().unwrap(),
        nodes: vec![
            node("node1", NodeState::Collected),
            node("node2", NodeState::LastKnown),
            node("node3", NodeState::Missing),
        ],
        database: Some(Database { schema: 2, rows: 3 }),
        sealed: None,
        entries: Vec::new(),
    }
}

fn entry(name: &str) -> EntryPath {
    EntryPath::Node(name.parse::<NodeName>().unwrap())
}

fn xml(name: &str) -> Vec<u8> {
    format!("<node name=\"{name}\">{}</node>\n", "<x/>".repeat(5000)).into_bytes()
}

/// The parts of [`manifest`], in this order.
fn parts(folder: &Path, order: [usize; 3]) -> Parts {
    let mut parts = Parts::new(folder).unwrap();
    let contents = [
        (EntryPath::Database, DATABASE.to_vec()),
        (entry("node1"), xml("node1")),
        (entry("node2"), xml("node2")),
    ];
    for at in order {
        let (path, content) = &contents[at];
        parts.add(path.clone(), &mut &content[..]).unwrap();
    }
    parts
}

/// A good archive in a folder of its own.
fn good() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lab.zip");
    parts(folder.path(), [0, 1, 2])
        .zip(manifest(), &path)
        .unwrap()
        .publish()
        .unwrap();
    (folder, path)
}

fn read(archive: &mut Archive, path: &EntryPath) -> Vec<u8> {
    let mut content = Vec::new();
    let mut reader = archive.reader(path).unwrap();
    reader.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn what_was_put_in_comes_out_here_and_by_unzip() {
    let (folder, path) = good();
    let mut archive = Archive::open(&path).unwrap();
    archive.verify().unwrap();
    assert_eq!(archive.manifest().nodes, manifest().nodes);
    let absent: Vec<_> = archive.manifest().absent().collect();
    assert_eq!(absent.len(), 2);
    assert_eq!(read(&mut archive, &EntryPath::Database), DATABASE);
    assert_eq!(read(&mut archive, &entry("node2")), xml("node2"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    run(Command::new("unzip").arg("-tqq").arg(&path));
    let out = folder.path().join("out");
    run(Command::new("unzip")
        .args(["-qq", "-d"])
        .arg(&out)
        .arg(&path));
    assert_eq!(
        std::fs::read(out.join("nodes/node1.xml")).unwrap(),
        xml("node1")
    );
    assert_eq!(std::fs::read(out.join("database.jsonl")).unwrap(), DATABASE);
    let sums = Command::new("sha256sum")
        .arg(out.join("nodes/node1.xml"))
        .output()
        .unwrap();
    let said = &archive.manifest().entry(&entry("node1")).unwrap().sha256;
    assert!(String::from_utf8_lossy(&sums.stdout).starts_with(said));
    // Nothing of the making is left.
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn sealed_secrets_are_entries_that_the_manifest_tells_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lab.zip");
    let secrets = EntryPath::Secrets("node1".parse().unwrap());
    let told = |nodes: bool, passphrase: bool| {
        let mut manifest = manifest();
        manifest.nodes[0].secrets = nodes.then(HeldSecrets::default);
        manifest.sealed = passphrase.then(|| Sealed {
            recipients: Vec::new(),
            passphrase,
        });
        manifest
    };
    let publish = |manifest: Manifest, entries: &[EntryPath]| {
        let mut parts = parts(folder.path(), [0, 1, 2]);
        for entry in entries {
            parts.add(entry.clone(), &mut &b"sealed"[..]).unwrap();
        }
        parts.zip(manifest, &path)?.publish()
    };
    let both = [secrets.clone(), EntryPath::SecretsIdentity];
    for (manifest, entries) in [
        (told(false, false), &both[..1]),
        (told(true, true), &both[..1]),
        (told(true, true), &both[1..]),
        (told(true, false), &both[..1]),
        (told(false, true), &both[..]),
    ] {
        let error = publish(manifest, entries).unwrap_err();
        assert!(matches!(error, Error::Manifest { .. }), "{error}");
    }
    publish(told(true, true), &both).unwrap();
    let mut archive = Archive::open(&path).unwrap();
    archive.verify().unwrap();
    assert_eq!(read(&mut archive, &secrets), b"sealed");
    let listed = run(Command::new("unzip").arg("-l").arg(&path)).stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains("secrets/node1.age") && listed.contains("secrets.age"));
}

#[test]
fn the_same_parts_in_any_order_are_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut archives = Vec::new();
    for (at, order) in [[0, 1, 2], [2, 1, 0], [1, 2, 0]].into_iter().enumerate() {
        let path = folder.path().join(format!("{at}.zip"));
        let parts = parts(folder.path(), order);
        parts.zip(manifest(), &path).unwrap().publish().unwrap();
        archives.push(std::fs::read(path).unwrap());
    }
    assert!(archives[1..].iter().all(|one| *one == archives[0]));
}

#[test]
fn an_archive_is_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lab.zip");
    let mut lacking = Parts::new(folder.path()).unwrap();
    lacking.add(entry("node1"), &mut &b"<x/>"[..]).unwrap();
    let error = lacking.zip(manifest(), &path).unwrap_err();
    assert!(matches!(error, Error::Manifest { .. }), "{error:?}");

    let mut broken = parts(folder.path(), [0, 1, 2]);
    let mut stream = (&b"half"[..]).chain(Failing);
    broken.add(entry("node3"), &mut stream).unwrap_err();
    drop(broken.begin(entry("node3")).unwrap());
    assert_eq!(broken.paths().count(), 3);
    let twice = broken.add(entry("node1"), &mut &b""[..]).unwrap_err();
    assert!(matches!(twice, Error::Twice { .. }), "{twice:?}");

    std::fs::write(&path, "mine").unwrap();
    let zipped = broken.zip(manifest(), &path).unwrap();
    let error = zipped.publish().unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

/// A stream that breaks.
struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ConnectionReset.into())
    }
}

/// Of a process that died there is a partial without a lock; one that is being written has its lock.
#[test]
fn what_a_dead_writer_left_goes_and_what_is_being_written_stays() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join(".vmtwin-cluster-dead.partial"), "half").unwrap();
    for other in [".vmtwin-cluster-other", "other.partial"] {
        std::fs::write(to.join(other), "mine").unwrap();
    }
    let zipped = |name: &str| {
        let parts = parts(folder.path(), [0, 1, 2]);
        parts.zip(manifest(), &to.join(name)).unwrap()
    };
    let names = || std::fs::read_dir(&to).unwrap().count();
    let first = zipped("first.zip");
    assert_eq!(names(), 3);
    let second = zipped("second.zip");
    assert_eq!(names(), 4);
    second.publish().unwrap();
    first.publish().unwrap();
    assert_eq!(names(), 4);
    for name in ["first.zip", "second.zip"] {
        Archive::open(&to.join(name)).unwrap().verify().unwrap();
    }
}

#[test]
fn a_part_without_end_is_refused_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = Parts::new(folder.path()).unwrap();
    let error = parts
        .add(entry("node1"), &mut std::io::repeat(b' '))
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    assert_eq!(parts.paths().count(), 0);
}

/// Every bit of the file, one at a time at random: it is found, or it changes nothing that is used.
#[test]
fn a_changed_bit_is_found() {
    let (folder, path) = good();
    let good = std::fs::read(&path).unwrap();
    let changed = folder.path().join("changed.zip");
    let mut runner = TestRunner::new(Config::with_cases(400));
    runner
        .run(&(0..good.len(), 0..8u32), |(at, bit)| {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            std::fs::write(&changed, bytes).unwrap();
            let Ok(mut archive) = Archive::open(&changed) else {
                return Ok(());
            };
            if archive.verify().is_ok() {
                prop_assert_eq!(read(&mut archive, &EntryPath::Database), DATABASE);
                prop_assert_eq!(read(&mut archive, &entry("node1")), xml("node1"));
                prop_assert_eq!(read(&mut archive, &entry("node2")), xml("node2"));
            }
            Ok(())
        })
        .unwrap();
}

/// Random bytes and cut files never do more than be refused.
#[test]
fn noise_is_refused() {
    let (folder, path) = good();
    let good = std::fs::read(&path).unwrap();
    let other = folder.path().join("other.zip");
    let mut runner = TestRunner::new(Config::with_cases(200));
    let noise = proptest::collection::vec(any::<u8>(), 0..200);
    runner
        .run(&(0..good.len(), noise), |(cut, noise)| {
            for bytes in [
                &good[..cut],
                &noise[..],
                &[&noise[..], &good[cut..]].concat(),
            ] {
                if *bytes != good[..] {
                    std::fs::write(&other, bytes).unwrap();
                    prop_assert!(Archive::open(&other).is_err());
                }
            }
            Ok(())
        })
        .unwrap();
}

fn plain() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)
}

/// A zip file with the good manifest and entries, and one more thing.
fn with(more: impl FnOnce(&mut ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
    let (_folder, path) = good();
    let mut from = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        zip.raw_copy_file(from.by_index_raw(index).unwrap())
            .unwrap();
    }
    more(&mut zip);
    zip.finish().unwrap().into_inner()
}

fn refused(bytes: &[u8], words: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.zip");
    std::fs::write(&path, bytes).unwrap();
    let error = Archive::open(&path).unwrap_err();
    assert!(error.to_string().contains(words), "{words}: {error}");
}

#[test]
fn hostile_archives_are_refused() {
    for name in [
        "../evil.xml",
        "/etc/passwd",
        "nodes/../x.xml",
        "nodes/a/b.xml",
        "note.txt",
    ] {
        let bytes = with(|zip| {
            zip.start_file(name, plain()).unwrap();
            zip.write_all(b"<x/>").unwrap();
        });
        refused(&bytes, "is not the name of an entry");
    }
    let unlisted = with(|zip| zip.start_file("nodes/node9.xml", plain()).unwrap());
    refused(&unlisted, "not in the manifest");
    let link = with(|zip| {
        zip.add_symlink("nodes/node9.xml", "/etc/passwd", plain())
            .unwrap();
    });
    refused(&link, "not a plain file");
    let folder = with(|zip| zip.add_directory("nodes/", plain()).unwrap());
    refused(&folder, "plain file");
    let comment = with(|zip| zip.set_comment("hello").unwrap());
    refused(&comment, "does not end");
    let none = ZipWriter::new(Cursor::new(Vec::new())).finish().unwrap();
    refused(&none.into_inner(), "no entry");
    let mut prefixed = b"#!/bin/sh\n".to_vec();
    prefixed.extend(with(|_| {}));
    refused(&prefixed, "directory is not where");
    let mut more = with(|_| {});
    more.extend(b"more");
    refused(&more, "does not end");
    refused(b"PK\x05\x06", "too short");
}

/// Replaces all of one text by another of the same length.
fn patched(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

#[test]
fn a_name_that_comes_twice_is_refused() {
    let bytes = with(|zip| zip.start_file("nodes/nodeX.xml", plain()).unwrap());
    refused(
        &patched(bytes, b"nodes/nodeX.xml", b"nodes/node1.xml"),
        "twice",
    );
}

#[test]
fn more_entries_than_there_are_bytes_for_are_refused_before_memory_is_taken() {
    let mut bytes = with(|_| {});
    let end = bytes.len() - 22;
    for at in [end + 8, end + 10] {
        bytes[at..at + 2].copy_from_slice(&u16::MAX.to_le_bytes());
    }
    refused(&bytes, "too many");
}

/// 300 MiB of zeros in an entry that says it has 20 KiB, and in one that says so itself.
#[test]
fn a_bomb_does_not_go_off() {
    let (_folder, path) = good();
    let size = xml("node1").len() as u32;
    let mut from = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let entry = from.by_index_raw(index).unwrap();
        if entry.name_raw() != b"nodes/node1.xml" {
            zip.raw_copy_file(entry).unwrap();
            continue;
        }
        zip.start_file("nodes/node1.xml", plain()).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..300).for_each(|_| zip.write_all(&zeros).unwrap());
    }
    let bomb = zip.finish().unwrap().into_inner();
    refused(&bomb, "too large");
    let lying = patched(bomb, &(300u32 << 20).to_le_bytes(), &size.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.zip");
    std::fs::write(&path, lying).unwrap();
    let started = std::time::Instant::now();
    let mut archive = Archive::open(&path).unwrap();
    let error = archive.verify().unwrap_err();
    assert!(matches!(error, Error::BadArchive { .. }), "{error:?}");
    let mut used = Vec::new();
    let mut reader = archive.reader(&entry("node1")).unwrap();
    reader.read_to_end(&mut used).unwrap_err();
    assert!(used.len() <= size as usize);
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn a_later_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later.zip");
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    zip.start_file("manifest.json", plain()).unwrap();
    zip.write_all(br#"{"format":"vmtwin-cluster-backup","version":7,"new":true}"#)
        .unwrap();
    zip.finish().unwrap();
    let error = Archive::open(&path).unwrap_err();
    assert!(
        matches!(error, Error::NewerArchive { found: 7, .. }),
        "{error:?}"
    );
}
