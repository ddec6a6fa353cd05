//! What we write, stock restic reads; what it writes, we read.

use std::process::Command;

use crate::common::{
    PASSWORD, Quiet, TestImage, TestRepository, TestSink, files, grain, meta, noise, small,
};
use vmtwin_repository::{EntryKind, Error, Location, Password, Repository};

/// Restores a snapshot by restic; gives the joined segments of a folder.
fn restored(test: &TestRepository, snapshot: &str, dir: &str) -> Vec<u8> {
    let target = tempfile::tempdir_in(test.folder.path()).unwrap();
    test.restic_ok(&[
        "restore",
        snapshot,
        "--target",
        target.path().to_str().unwrap(),
    ]);
    let segments = files(&target.path().join(dir));
    segments
        .into_iter()
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect()
}

#[test]
fn restic_checks_lists_dumps_restores_and_prunes() {
    let test = TestRepository::new();
    // 4 KiB grains make segments of 4 MiB: 3 of them lie flat, 11 are nested.
    let flat = TestImage::mixed(1, (9 << 20) + 5);
    let nested = TestImage::mixed(2, (41 << 20) + 1234);
    let empty = TestImage::new(Vec::new());
    let progress = Quiet::default();
    let backup = test.repository.start_backup(&small()).unwrap();
    let odd_name = "/odd \"name\" \\ ä\u{1}";
    backup.add_bytes(odd_name, b"odd").unwrap();
    backup.add_bytes("/empty", b"").unwrap();
    let long = noise(3, (2 << 20) + 7);
    backup.add_reader("/long", &mut &long[..]).unwrap();
    for (dir, image) in [
        ("/d/flat", &flat),
        ("/d/nested", &nested),
        ("/d/empty", &empty),
    ] {
        let stats = backup.add_image(dir, image, &grain(4), &progress).unwrap();
        assert_eq!(stats.bytes_total, image.data.len() as u64);
        assert_eq!(stats.chunks, stats.bytes_total.div_ceil(4096));
        assert!(stats.bytes_zero >= (stats.bytes_total / 3).saturating_sub(4096));
        assert!(stats.bytes_read <= stats.bytes_total * 5 / 6 + 1);
    }
    let total = (flat.data.len() + nested.data.len()) as u64;
    assert_eq!(progress.processed.into_inner(), total);
    let first = backup.finish(meta()).unwrap();
    let second = test.backup(&flat, &grain(4));

    test.check();
    let listed = String::from_utf8(test.restic_ok(&["snapshots", "--json"])).unwrap();
    assert!(
        listed.contains(&first.id) && listed.contains("vm=web01"),
        "{listed}"
    );
    let listed = String::from_utf8(test.restic_ok(&["ls", &first.id])).unwrap();
    for name in [
        "/d/flat/00000002",
        "/d/nested/000002/00000010",
        "/long",
        odd_name,
    ] {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    assert_eq!(test.restic_ok(&["dump", &first.id, odd_name]), b"odd");
    assert_eq!(test.restic_ok(&["dump", &first.id, "/empty"]), b"");
    assert_eq!(test.restic_ok(&["dump", &first.id, "/long"]), long);
    assert!(restored(&test, &first.id, "d/flat") == flat.data);
    assert!(restored(&test, &first.id, "d/nested") == nested.data);
    assert!(restored(&test, &first.id, "d/empty").is_empty());

    test.restic_ok(&["forget", "--prune", &first.id]);
    test.check();
    let reader = test.repository.reader(&second).unwrap();
    let image = reader.open_image("/disks/vda").unwrap();
    let sink = TestSink::new(image.size_bytes());
    image.copy_to(&sink, &Quiet::default()).unwrap();
    assert!(sink.0.into_inner().unwrap() == flat.data);
}

#[test]
fn a_repository_of_restic_is_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        command
            .arg("--no-cache")
            .arg("-r")
            .arg(&repo)
            .args(arguments);
        let output = command
            .env("RESTIC_PASSWORD", PASSWORD)
            .current_dir(folder.path())
            .output();
        let output = output.expect("these tests need `restic` installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    restic(&["init"]);
    std::fs::create_dir_all(folder.path().join("in/sub")).unwrap();
    let data = noise(5, 3 << 20);
    std::fs::write(folder.path().join("in/sub/file"), &data).unwrap();
    std::os::unix::fs::symlink("sub", folder.path().join("in/link")).unwrap();
    restic(&["backup", "in"]);

    let location = Location::parse(repo.to_str().unwrap()).unwrap();
    let repository = Repository::open(&location, &Password::from(PASSWORD)).unwrap();
    let snapshot = repository.snapshot("latest").unwrap();
    let reader = repository.reader(&snapshot).unwrap();
    let kinds: Vec<_> = reader
        .list("/in")
        .unwrap()
        .into_iter()
        .map(|e| (e.name, e.kind))
        .collect();
    let expected = [
        ("link".to_owned(), EntryKind::Other),
        ("sub".to_owned(), EntryKind::Folder),
    ];
    assert_eq!(kinds, expected);
    assert!(reader.read_file("/in/sub/file", 4 << 20).unwrap() == data);
    let mut copied = Vec::new();
    assert_eq!(
        reader.copy_file("/in/sub/file", &mut copied).unwrap(),
        data.len() as u64
    );
    assert!(copied == data);
    assert!(matches!(
        reader.read_file("/in/sub/file", 9),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        reader.read_file("/in/link", 9),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(reader.list("/none"), Err(Error::NotFound { .. })));
    assert!(matches!(
        reader.open_image("/in"),
        Err(Error::Damaged { .. })
    ));
    drop(reader);

    let backup = repository.start_backup(&small()).unwrap();
    backup.add_bytes("/machine.json", b"{}").unwrap();
    backup.finish(meta()).unwrap();
    restic(&["check", "--read-data"]);
}

#[test]
fn a_random_password_costs_little_to_try() {
    let test = TestRepository::new();
    std::fs::remove_dir_all(test.path()).unwrap();
    let location = Location::parse(test.path().to_str().unwrap()).unwrap();
    let made = Repository::init(&location, &Password::random(PASSWORD)).unwrap();
    let [key] = &files(&test.path().join("keys"))[..] else {
        panic!("not one key");
    };
    let key: serde_json::Value = serde_json::from_slice(&std::fs::read(key).unwrap()).unwrap();
    assert_eq!([&key["N"], &key["r"], &key["p"]], [16384, 8, 1]);
    let opened = Repository::open(&location, &Password::from(PASSWORD)).unwrap();
    assert_eq!(opened.id(), made.id());
    let wrong = Repository::open(&location, &Password::from("wrong"));
    assert!(matches!(wrong, Err(Error::WrongPassword)), "{wrong:?}");
    test.check();
}

#[test]
fn opening_says_what_is_wrong() {
    let test = TestRepository::new();
    let location = Location::parse(test.path().to_str().unwrap()).unwrap();
    let password = Password::from(PASSWORD);
    let opened = Repository::open(&location, &password).unwrap();
    assert_eq!(opened.id(), test.repository.id());
    let wrong = Repository::open(&location, &Password::from("wrong"));
    assert!(matches!(wrong, Err(Error::WrongPassword)), "{wrong:?}");
    let again = Repository::init(&location, &password);
    assert!(
        matches!(again, Err(Error::AlreadyExists { .. })),
        "{again:?}"
    );
    let nowhere = test.folder.path().join("none");
    let nowhere = Location::parse(nowhere.to_str().unwrap()).unwrap();
    let missing = Repository::open(&nowhere, &password);
    assert!(
        matches!(missing, Err(Error::NotARepository { .. })),
        "{missing:?}"
    );
    // Data without its configuration is not made openable by a new key.
    test.backup(&TestImage::new(noise(1, 10)), &grain(4));
    std::fs::remove_file(test.path().join("config")).unwrap();
    let again = Repository::init(&location, &password);
    assert!(matches!(again, Err(Error::Damaged { .. })), "{again:?}");
}

#[test]
fn version_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("restic");
    command
        .args(["--no-cache", "init", "--repository-version", "1", "-r"])
        .arg(folder.path());
    let output = command.env("RESTIC_PASSWORD", PASSWORD).output();
    assert!(
        output
            .expect("these tests need `restic` installed")
            .status
            .success()
    );
    let location = Location::parse(folder.path().to_str().unwrap()).unwrap();
    let opened = Repository::open(&location, &Password::from(PASSWORD));
    assert!(
        matches!(opened, Err(Error::Unsupported { .. })),
        "{opened:?}"
    );
}

#[test]
fn snapshots_by_name() {
    let test = TestRepository::new();
    let repository = &test.repository;
    assert!(matches!(
        repository.snapshot("latest"),
        Err(Error::NotFound { .. })
    ));
    let ids: Vec<String> = (0..17)
        .map(|number: u8| {
            let backup = repository.start_backup(&small()).unwrap();
            backup.add_bytes("/n", &[number]).unwrap();
            backup.finish(meta()).unwrap().id
        })
        .collect();
    let listed = repository.snapshots().unwrap();
    assert!(listed.damaged.is_empty());
    let listed: Vec<_> = listed.snapshots.into_iter().map(|s| s.id).collect();
    assert_eq!(listed, ids);
    assert_eq!(repository.snapshot("latest").unwrap().id, ids[16]);
    assert_eq!(repository.snapshot(&ids[3][..20]).unwrap().id, ids[3]);
    // Of 17 ids two begin with the same digit.
    let ambiguous = |digit: char| {
        let answer = repository.snapshot(&digit.to_string());
        matches!(answer, Err(Error::Ambiguous { .. }))
    };
    assert!("0123456789abcdef".chars().any(ambiguous));
    for none in ["", "x", "../config"] {
        assert!(
            matches!(repository.snapshot(none), Err(Error::NotFound { .. })),
            "{none}"
        );
    }
    assert!(matches!(
        repository.remove_snapshot(&ids[0][..9]),
        Err(Error::NotFound { .. })
    ));
    repository.remove_snapshot(&ids[0]).unwrap();
    assert!(matches!(
        repository.snapshot(&ids[0]),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        repository.remove_snapshot(&ids[0]),
        Err(Error::NotFound { .. })
    ));
}
