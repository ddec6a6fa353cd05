//! Against a real qemu-nbd: data, holes, bitmaps, writes. Needs qemu-utils and libnbd-bin.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail them"
)]

mod server;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
};

use server::{EXPORT, Server, run};
use vmtwin_nbd::{Client, Error, Options, context};

const MIB: usize = 1 << 20;

/// Bytes that differ everywhere, and repeat nowhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// 24 MiB of which the second third is a hole and some more pages are.
fn sparse_raw(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("raw.img");
    let file = File::create(&path).unwrap();
    file.set_len(24 * MIB as u64).unwrap();
    let mut content = vec![0; 24 * MIB];
    for (at, len) in [
        (0, 8 * MIB),
        (16 * MIB, MIB),
        (18 * MIB, 4096),
        (23 * MIB, MIB),
    ] {
        content[at..at + len].copy_from_slice(&noise(len, at as u64));
        file.write_all_at(&content[at..at + len], at as u64)
            .unwrap();
    }
    (path, content)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn to_qcow2(raw: &Path) -> PathBuf {
    let path = raw.with_extension("qcow2");
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            text(raw),
            text(&path),
        ],
    );
    path
}

fn read_whole(client: &Client) -> Vec<u8> {
    let mut content = vec![1; client.size_bytes() as usize];
    client.read_at(0, &mut content).unwrap();
    content
}

/// Our extents, in the form of nbdinfo: offset, length, flags.
fn map(client: &Client, context: &str) -> Vec<(u64, u64, u64)> {
    let mut offset = 0;
    let extents = client.extents(context, 0, client.size_bytes());
    extents
        .map(|extent| {
            let extent = extent.unwrap();
            offset += extent.len_bytes;
            (
                offset - extent.len_bytes,
                extent.len_bytes,
                u64::from(extent.flags),
            )
        })
        .collect()
}

/// nbdinfo does not join neighbours of the same status.
fn joined(extents: Vec<(u64, u64, u64)>) -> Vec<(u64, u64, u64)> {
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    for extent in extents {
        match joined.last_mut() {
            Some(last) if last.2 == extent.2 => last.1 += extent.1,
            _ => joined.push(extent),
        }
    }
    joined
}

#[test]
fn data_and_holes_of_raw_and_qcow2_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, content) = sparse_raw(dir.path());
    let qcow2 = to_qcow2(&raw);
    for (image, format) in [(&raw, "raw"), (&qcow2, "qcow2")] {
        let server = Server::start(image, format, &["--read-only", "--allocation-depth"]);
        let contexts = [context::BASE_ALLOCATION, context::ALLOCATION_DEPTH];
        let client = server.connect(&contexts);
        assert_eq!(client.size_bytes(), content.len() as u64);
        assert!(client.is_read_only() && client.can_multi_conn());
        assert!(read_whole(&client) == content, "{format}");
        for context in contexts {
            let extents = map(&client, context);
            assert_eq!(
                extents,
                joined(server.nbdinfo_map(context)),
                "{format} {context}"
            );
            assert!(extents.len() > 1 || context != context::BASE_ALLOCATION);
        }
        let status = client
            .block_status(context::BASE_ALLOCATION, 9 * MIB as u64, 4096)
            .unwrap();
        assert_eq!(
            (status[0].len_bytes, status[0].flags & context::ZERO),
            (4096, context::ZERO)
        );
        client.disconnect().unwrap();
    }
}

#[test]
fn threads_share_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, content) = sparse_raw(dir.path());
    let server = Server::start(&raw, "raw", &["--read-only"]);
    let client = server.connect(&[context::BASE_ALLOCATION]);
    let (client, content) = (&client, &content);
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let picks = noise(8 * 200, number);
                for pick in picks.chunks_exact(8) {
                    let pick = u64::from_le_bytes(pick.try_into().unwrap()) as usize;
                    let len = (pick >> 32) % MIB + 1;
                    let at = pick % (content.len() - len);
                    let mut buf = vec![1; len];
                    client.read_at(at as u64, &mut buf).unwrap();
                    assert!(buf == content[at..at + len]);
                    if pick.is_multiple_of(7) {
                        client
                            .block_status(context::BASE_ALLOCATION, 0, 4096)
                            .unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn small_payloads_and_ends_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, content) = sparse_raw(dir.path());
    let server = Server::start(&raw, "raw", &["--read-only"]);
    drop(server.connect(&[]));
    let options = Options {
        max_payload_bytes: 65_536,
        ..Options::default()
    };
    let client = Client::connect_unix(&server.socket, EXPORT, &options).unwrap();
    assert!(read_whole(&client) == content);
    client.read_at(client.size_bytes(), &mut []).unwrap();
    for (offset, len) in [
        (client.size_bytes(), 1),
        (client.size_bytes() - 1, 2),
        (u64::MAX, 1),
    ] {
        let error = client.read_at(offset, &mut vec![0; len]).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
    let write = client.write_at(0, &[1]).unwrap_err();
    assert!(matches!(write, Error::NotOffered { .. }), "{write}");
    let status = client
        .block_status(context::BASE_ALLOCATION, 0, 1)
        .unwrap_err();
    assert!(matches!(status, Error::NotOffered { .. }), "{status}");
    assert!(
        read_whole(&client) == content,
        "refused calls leave the connection usable"
    );
}

#[test]
fn what_is_missing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _) = sparse_raw(dir.path());
    let none = Client::connect_unix(&dir.path().join("none"), EXPORT, &Options::default());
    assert!(matches!(none.unwrap_err(), Error::Connect { .. }));
    let server = Server::start(&raw, "raw", &["--read-only"]);
    let client = server.connect(&["qemu:dirty-bitmap:none", context::BASE_ALLOCATION]);
    assert!(!client.has_context("qemu:dirty-bitmap:none"));
    assert!(client.has_context(context::BASE_ALLOCATION));
    let other = Client::connect_unix(&server.socket, "other", &Options::default());
    assert!(matches!(other.unwrap_err(), Error::Refused { .. }));
}

#[test]
fn a_dirty_bitmap_says_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _) = sparse_raw(dir.path());
    let qcow2 = to_qcow2(&raw);
    run(
        "qemu-img",
        &["bitmap", "--add", "-g", "65536", text(&qcow2), "since"],
    );
    for write in ["write -P 7 1M 64k", "write -P 8 10M 200k"] {
        run("qemu-io", &["-f", "qcow2", "-c", write, text(&qcow2)]);
    }
    let server = Server::start(&qcow2, "qcow2", &["--read-only", "--bitmap=since"]);
    let name = format!("{}since", context::DIRTY_BITMAP_PREFIX);
    let client = server.connect(&[context::BASE_ALLOCATION, &name]);
    let dirty: Vec<_> = map(&client, &name)
        .into_iter()
        .filter(|e| e.2 == u64::from(context::DIRTY))
        .collect();
    let mib = MIB as u64;
    assert_eq!(dirty, [(mib, 65_536, 1), (10 * mib, 4 * 65_536, 1)]);
    assert_eq!(map(&client, &name), joined(server.nbdinfo_map(&name)));
}

#[test]
fn writes_zeros_and_flush_reach_a_qcow2() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, mut content) = sparse_raw(dir.path());
    let qcow2 = to_qcow2(&raw);
    let server = Server::start(&qcow2, "qcow2", &["--discard=unmap"]);
    let client = server.connect(&[context::BASE_ALLOCATION]);
    let (at, bytes) = (9 * MIB + 512, noise(3 * MIB, 5));
    content[at..at + bytes.len()].copy_from_slice(&bytes);
    let half = bytes.len() / 2;
    thread::scope(|scope| {
        scope.spawn(|| client.write_at(at as u64, &bytes[..half]).unwrap());
        scope.spawn(|| client.write_at((at + half) as u64, &bytes[half..]).unwrap());
    });
    for (at, allocate) in [(2 * MIB, false), (4 * MIB, true)] {
        client
            .write_zeroes(at as u64, MIB as u64, allocate)
            .unwrap();
        content[at..at + MIB].fill(0);
    }
    client.flush().unwrap();
    assert!(read_whole(&client) == content);
    let status = client
        .block_status(context::BASE_ALLOCATION, 2 * MIB as u64, MIB as u64)
        .unwrap();
    assert_eq!(status[0].flags, context::HOLE | context::ZERO);
    client.disconnect().unwrap();
    drop(server);
    run("qemu-img", &["check", text(&qcow2)]);
    run(
        "qemu-img",
        &[
            "convert",
            "-O",
            "raw",
            text(&qcow2),
            text(&dir.path().join("again")),
        ],
    );
    assert!(fs::read(dir.path().join("again")).unwrap() == content);
}
