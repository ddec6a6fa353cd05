//! Damaged objects of every kind: a clear error or correct data, never a panic nor wrong data.

use std::sync::Arc;

use crate::common::{PASSWORD, Quiet, TestImage, TestRepository, TestSink, grain, meta, small};
use vmtwin_repository::faulty::{Damage, DamageForm, Limits};
use vmtwin_repository::{Error, Kind, LockMode, Password, Repository, Result};

/// Lengths to cut at and bytes to flip, spread over an object.
fn forms(length: u64, count: u64) -> Vec<DamageForm> {
    let mut forms = Vec::new();
    for step in 0..count {
        let at = step * length / count;
        forms.push(DamageForm::Truncated(at));
        forms.push(DamageForm::Flipped {
            offset_bytes: at,
            mask: 1 << (step % 8),
        });
    }
    forms.push(DamageForm::Truncated(length - 1));
    forms.push(DamageForm::Flipped {
        offset_bytes: length - 1,
        mask: 0x80,
    });
    forms
}

fn longest(test: &TestRepository, folder: &str) -> u64 {
    let files = crate::common::files(&test.path().join(folder));
    files
        .iter()
        .map(|file| std::fs::metadata(file).unwrap().len())
        .max()
        .unwrap()
}

fn set(test: &TestRepository, kind: Kind, form: DamageForm) {
    test.store.set_limits(Limits {
        damage: Some(Damage { kind, form }),
        ..Limits::default()
    });
}

fn prepared() -> (TestRepository, TestImage) {
    let test = TestRepository::new();
    let image = TestImage::mixed(1, 700 << 10);
    test.backup(&image, &grain(64));
    (test, image)
}

fn read_all(test: &TestRepository, image: &TestImage) -> Result<()> {
    let snapshot = test.repository.snapshot("latest")?;
    let reader = test.repository.reader(&snapshot)?;
    let stored = reader.open_image("/disks/vda")?;
    let mut data = vec![1; image.data.len()];
    stored.read_at(0, &mut data)?;
    assert!(data == image.data, "wrong data");
    let sink = TestSink::new(stored.size_bytes());
    stored.copy_to(&sink, &Quiet::default())?;
    assert!(sink.0.into_inner().unwrap() == image.data, "wrong data");
    assert!(reader.read_file("/machine.json", 10)? == b"{}");
    Ok(())
}

#[test]
fn snapshots_index_and_packs() {
    let (test, image) = prepared();
    read_all(&test, &image).unwrap();
    for (kind, folder, count) in [
        (Kind::Snapshot, "snapshots", 20),
        (Kind::Index, "index", 20),
        (Kind::Pack, "data", 60),
    ] {
        for form in forms(longest(&test, folder), count) {
            set(&test, kind, form);
            let result = read_all(&test, &image);
            let fine = match &result {
                // The header of a pack is not read, so damage there does not matter here.
                Ok(()) => kind == Kind::Pack,
                Err(error) => matches!(error, Error::Damaged { .. }),
            };
            assert!(fine, "{kind:?} {form:?}: {result:?}");
            if kind == Kind::Index {
                let backup = test.repository.start_backup(&small());
                assert!(
                    matches!(backup, Err(Error::Damaged { .. })),
                    "{form:?}: {backup:?}"
                );
            }
        }
    }
    let half = longest(&test, "snapshots") / 2;
    set(&test, Kind::Snapshot, DamageForm::Truncated(half));
    let list = test.repository.snapshots().unwrap();
    assert_eq!((list.snapshots.len(), list.damaged.len()), (0, 1));
}

#[test]
fn config_and_keys() {
    let (test, image) = prepared();
    let password = Password::from(PASSWORD);
    for (kind, folder, count) in [(Kind::Config, "config", 2), (Kind::Key, "keys", 40)] {
        let length = match kind {
            Kind::Config => std::fs::metadata(test.path().join(folder)).unwrap().len(),
            _ => longest(&test, folder),
        };
        for form in forms(length, count) {
            set(&test, kind, form);
            let opened = Repository::open_with(Arc::clone(&test.store) as _, &password);
            assert!(
                matches!(opened, Err(Error::Damaged { .. })),
                "{form:?}: {opened:?}"
            );
        }
    }
    test.store.set_limits(Limits::default());
    read_all(&test, &image).unwrap();
}

/// Each object deleted, and swapped with others of the same repository and of another one.
#[test]
fn deleted_and_swapped_config_and_keys() {
    let (test, image) = prepared();
    let (other, _) = prepared();
    let password = Password::from(PASSWORD);
    let one_of = |test: &TestRepository, folder: &str| {
        let path = test.path().join(folder);
        match path.is_file() {
            true => path,
            false => crate::common::files(&path).remove(0),
        }
    };
    for folder in ["config", "keys"] {
        let path = one_of(&test, folder);
        let whole = std::fs::read(&path).unwrap();
        let snapshot = std::fs::read(one_of(&test, "snapshots")).unwrap();
        let foreign = std::fs::read(one_of(&other, folder)).unwrap();
        for (what, content) in [
            ("deleted", None),
            ("a snapshot", Some(snapshot)),
            ("of another repository", Some(foreign)),
        ] {
            std::fs::remove_file(&path).unwrap();
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = Repository::open_with(Arc::clone(&test.store) as _, &password)
                .expect_err(what)
                .to_string();
            let named = match (folder, what) {
                ("config", "deleted") => "no repository",
                ("keys", "deleted") => "it has no keys",
                _ => "damaged",
            };
            assert!(error.contains(named), "{folder} {what}: {error}");
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, &whole).unwrap();
        }
    }
    read_all(&test, &image).unwrap();
}

/// One of another repository, which our keys do not open.
#[test]
fn a_swapped_lock_hinders_and_is_removed() {
    let (test, image) = prepared();
    let (other, _) = prepared();
    let held = other.repository.hold_lock(LockMode::Exclusive).unwrap();
    let foreign = crate::common::files(&other.path().join("locks")).remove(0);
    let here = test.path().join("locks").join(foreign.file_name().unwrap());
    std::fs::copy(&foreign, here).unwrap();
    // In doubt somebody may be at work.
    let result = read_all(&test, &image);
    assert!(matches!(result, Err(Error::Damaged { .. })), "{result:?}");
    assert_eq!(test.repository.remove_stale_locks().unwrap(), 1);
    read_all(&test, &image).unwrap();
    drop(held);
}

#[test]
fn locks() {
    let (test, image) = prepared();
    let held = test.repository.hold_lock(LockMode::Shared).unwrap();
    for form in forms(longest(&test, "locks"), 10) {
        set(&test, Kind::Lock, form);
        let result = read_all(&test, &image);
        assert!(
            matches!(result, Err(Error::Damaged { .. })),
            "{form:?}: {result:?}"
        );
        let locks = test.repository.locks().unwrap();
        assert!(locks.iter().all(|lock| lock.damaged.is_some()));
    }
    drop(held);
    test.store.set_limits(Limits::default());
    std::fs::write(test.path().join("locks").join("ab".repeat(32)), b"rubbish").unwrap();
    assert!(read_all(&test, &image).is_err());
    assert_eq!(test.repository.remove_stale_locks().unwrap(), 1);
    read_all(&test, &image).unwrap();
}

/// A key file that asks scrypt for the moon is refused before it is tried.
#[test]
fn hostile_keys() {
    let test = TestRepository::new();
    let keys = crate::common::files(&test.path().join("keys"));
    let text = std::fs::read_to_string(&keys[0]).unwrap();
    std::fs::remove_file(&keys[0]).unwrap();
    let key: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("N", 0u64),
        ("N", 3),
        ("N", 1 << 31),
        ("r", 0),
        ("r", u64::from(u32::MAX)),
        ("p", 0),
        ("p", u64::from(u32::MAX)),
    ] {
        let mut hostile = key.clone();
        hostile[field] = value.into();
        let data = hostile.to_string();
        let name = vmtwin_repository::Id::of(data.as_bytes()).to_hex();
        let path = test.path().join("keys").join(name);
        std::fs::write(&path, data).unwrap();
        let opened = Repository::open_with(Arc::clone(&test.store) as _, &Password::from(PASSWORD));
        assert!(
            matches!(opened, Err(Error::Damaged { .. })),
            "{field}: {opened:?}"
        );
        std::fs::remove_file(&path).unwrap();
    }
}

/// A pack that is gone or cut is not built upon: the next backup stores its blobs again.
#[test]
fn the_next_backup_heals_what_is_missing() {
    for cut in [false, true] {
        let (test, image) = prepared();
        for pack in crate::common::files(&test.path().join("data")) {
            let data = std::fs::read(&pack).unwrap();
            std::fs::remove_file(&pack).unwrap();
            if cut {
                std::fs::write(&pack, &data[..data.len() / 2]).unwrap();
            }
        }
        assert!(matches!(
            read_all(&test, &image),
            Err(Error::Damaged { .. })
        ));
        let backup = test.repository.start_backup(&small()).unwrap();
        let stats = backup
            .add_image("/disks/vda", &image, &grain(64), &Quiet::default())
            .unwrap();
        assert!(stats.bytes_new > 0);
        backup.add_bytes("/machine.json", b"{}").unwrap();
        backup.finish(meta()).unwrap();
        let healed = read_all(&test, &image);
        assert!(healed.is_ok(), "cut {cut}: {healed:?}");
    }
}
