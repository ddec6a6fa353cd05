//! Restores of made-up snapshots: formats, what is in the way, what is hostile, what fails.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use vmtwin_nbd::{Client, Options};
use vmtwin_testkit::SmallTmpfs;

use super::fixture::{DISK_BYTES, Fixture, content, disk_bytes, finish, machine, names};
use crate::restore::error::RestoreError;
use crate::restore::{ImageFormat, Phase, RestoreProgress, restore};

fn same(original: &Path, restored: &Path, format: &str) -> bool {
    let mut compare = Command::new("qemu-img");
    compare
        .args(["compare", "-q", "-f", "raw", "-F", format])
        .arg(original)
        .arg(restored);
    compare.status().unwrap().success()
}

#[test]
fn disks_are_as_they_were_and_sparse() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    let original = fixture.dir.path().join("original");
    fs::write(&original, disk_bytes()).unwrap();
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let mut request = fixture.request();
        request.format = Some(format);
        let report = fixture.restore(&snapshot, &request).unwrap();
        let path = &report.disks[0].path;
        assert_eq!(
            *path,
            fixture.target().join(format!("disk0.{}", format.name()))
        );
        assert!(same(&original, path, format.name()));
        let found = fs::metadata(path).unwrap();
        assert!(found.blocks() * 512 < 2 << 20, "{} blocks", found.blocks());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(report.disks[0].size_bytes, DISK_BYTES as u64);
        assert!(report.disks[0].written_bytes < 2 << 20);
    }
    assert_eq!(names(&fixture.target()), ["disk0.qcow2", "disk0.raw"]);
}

#[test]
fn what_is_there_is_replaced_only_with_force() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    fs::create_dir(fixture.target()).unwrap();
    let path = fixture.target().join("disk0.raw");
    fs::write(&path, "precious").unwrap();
    let mut request = fixture.request();
    let refused = fixture.restore(&snapshot, &request);
    assert!(
        matches!(refused, Err(RestoreError::Exists { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    request.force = true;
    fixture.restore(&snapshot, &request).unwrap();
    assert_eq!(fs::read(&path).unwrap(), disk_bytes());
    assert_eq!(names(&fixture.target()), ["disk0.raw"]);
}

#[test]
fn an_image_in_use_is_not_replaced() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    let mut request = fixture.request();
    fixture.restore(&snapshot, &request).unwrap();
    // It keeps the image open for writing.
    let socket = fixture.dir.path().join("socket");
    let mut user = Command::new("qemu-nbd")
        .args(["-t", "-f", "raw", "-k"])
        .args([&socket, &fixture.target().join("disk0.raw")])
        .spawn()
        .unwrap();
    // It listens before it opens the image, and answers after that.
    let answers = || Client::connect_unix(&socket, "", &Options::default()).is_ok();
    while user.try_wait().unwrap().is_none() && !answers() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    request.force = true;
    let refused = fixture.restore(&snapshot, &request);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(
        matches!(refused, Err(RestoreError::InUse { .. })),
        "{refused:?}"
    );
    fixture.restore(&snapshot, &request).unwrap();
}

/// Cancels when the first bytes are done.
#[derive(Default)]
struct CancelSoon(AtomicBool);

impl RestoreProgress for CancelSoon {
    fn begin(&self, _phase: Phase<'_>, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {
        self.0.store(true, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(120));
    }
}

#[test]
fn a_cancelled_restore_leaves_nothing() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let mut request = fixture.request();
        request.format = Some(format);
        let cancel = CancelSoon::default();
        let cancelled = || cancel.0.load(Ordering::SeqCst);
        let result = restore(
            &fixture.repository,
            &snapshot,
            &request,
            &cancel,
            &cancelled,
        );
        assert!(matches!(result, Err(RestoreError::Cancelled)), "{result:?}");
        assert!(!fixture.target().exists());
    }
}

#[test]
fn a_full_file_system_leaves_nothing() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    let Some(small) = SmallTmpfs::mount(512) else {
        return;
    };
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let mut request = fixture.request();
        request.dir = small.path().join("restored");
        request.format = Some(format);
        let result = fixture.restore(&snapshot, &request);
        assert!(
            matches!(
                result,
                Err(RestoreError::File {
                    action: "write",
                    ..
                })
            ),
            "{result:?}"
        );
        assert!(names(small.path()).is_empty());
    }
}

#[test]
fn a_repository_that_lost_data_leaves_nothing() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    let data = fixture.dir.path().join("repo/data");
    let mut disk = fixture.request();
    disk.force = true;
    fs::create_dir(fixture.target()).unwrap();
    fs::write(fixture.target().join("disk0.raw"), "precious").unwrap();
    // The pack with the disk is the largest.
    let mut packs: Vec<_> = fs::read_dir(data)
        .unwrap()
        .flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap())
        .map(|pack| pack.unwrap().path())
        .collect();
    packs.sort_by_key(|pack| fs::metadata(pack).unwrap().len());
    let largest = packs.pop().unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&largest, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&largest, bytes).unwrap();
    let result = fixture.restore(&snapshot, &disk);
    assert!(
        matches!(result, Err(RestoreError::Repository(_))),
        "{result:?}"
    );
    assert_eq!(
        fs::read(fixture.target().join("disk0.raw")).unwrap(),
        b"precious"
    );
    assert_eq!(names(&fixture.target()), ["disk0.raw"]);
}

#[test]
fn hostile_lists_are_refused() {
    let fixture = Fixture::new();
    let case = |change: &dyn Fn(&mut Value)| {
        let mut list = content();
        change(&mut list);
        let snapshot = fixture.snapshot(&list, &machine());
        let error = fixture.restore(&snapshot, &fixture.request()).unwrap_err();
        assert!(!fixture.target().exists());
        error
    };
    let damaged = |error: RestoreError| assert!(matches!(error, RestoreError::Damaged { .. }));
    for id in ["../disk0", "/etc/passwd", ".ssh", "a/b", "", "a\u{0}b"] {
        damaged(case(&|list| list["disks"][0]["id"] = json!(id)));
    }
    damaged(case(&|list| {
        list["disks"][0]["size_bytes"] = json!(DISK_BYTES + 1)
    }));
    damaged(case(&|list| list["format"] = json!(0)));
    damaged(case(&|list| list["disks"] = json!("many")));
    let twice = json!([content()["disks"][0], content()["disks"][0]]);
    damaged(case(&|list| list["disks"] = twice.clone()));
    let newer = case(&|list| list["format"] = json!(2));
    assert!(matches!(newer, RestoreError::NewerFormat { found: 2, .. }));
    let missing = case(&|list| list["disks"][0]["id"] = json!("disk1"));
    assert!(matches!(missing, RestoreError::Repository(_)));
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let fixture = Fixture::new();
    let snapshot = fixture.snapshot(&content(), &machine());
    let mut request = fixture.request();
    request.memory = true;
    let refused = fixture.restore(&snapshot, &request);
    assert!(matches!(refused, Err(RestoreError::NoMemory { .. })));
    let mut request = fixture.request();
    request.disks = Some(vec!["disk1".into()]);
    let refused = fixture.restore(&snapshot, &request);
    assert!(matches!(refused, Err(RestoreError::UnknownDisk { .. })));
    request.disks = Some(Vec::new());
    request.run = true;
    let refused = fixture.restore(&snapshot, &request);
    assert!(matches!(refused, Err(RestoreError::DiskLeftOut { .. })));
    request.disks = None;
    let refused = fixture.restore(&snapshot, &request);
    assert!(matches!(refused, Err(RestoreError::NotQemu { .. })));
    assert!(!fixture.target().exists());
}

#[test]
fn files_and_an_opaque_stream_come_back() {
    let fixture = Fixture::new();
    let mut list = content();
    list["disks"] = json!([]);
    list["memory"] = json!({"stored": "stream", "stream_bytes": 5, "reason": "unknown"});
    let backup = fixture.backup();
    backup.add_bytes("/memory/stream", b"QEVM!").unwrap();
    backup.add_bytes("/files/tpm/.lock", b"").unwrap();
    backup
        .add_bytes("/files/tpm/tpm2-00.permall", b"secret")
        .unwrap();
    let snapshot = finish(backup, &list, &machine());
    let mut request = fixture.request();
    request.memory = true;
    let report = fixture.restore(&snapshot, &request).unwrap();
    let memory = report.memory.unwrap();
    assert_eq!(fs::read(memory.path.unwrap()).unwrap(), b"QEVM!");
    assert_eq!(memory.stream_bytes, 5);
    let tpm = fixture.target().join("files/tpm");
    assert_eq!(names(&tpm), [".lock", "tpm2-00.permall"]);
    assert_eq!(fs::read(tpm.join("tpm2-00.permall")).unwrap(), b"secret");
    let again = fixture.restore(&snapshot, &request);
    assert!(matches!(again, Err(RestoreError::Exists { .. })));
}
