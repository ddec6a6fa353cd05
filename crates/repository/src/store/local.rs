//! A repository in a folder of a local (or mounted) file system.
//!
//! An object is written to `tmp/`, made durable, and then renamed to its name, so a crash leaves
//! at most a file in `tmp/`, which the next writer of the same repository removes after a day.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{FileName, Kind, Store, StoredFile};
use crate::id::Id;

/// Left-over temporary files older than this belong to nobody.
const TEMPORARY_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Objects in a folder, laid out as restic does.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    counter: AtomicU64,
    sweep: Once,
}

impl LocalStore {
    /// Names the folder; nothing is touched yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            counter: AtomicU64::new(0),
            sweep: Once::new(),
        }
    }

    fn path(&self, file: &FileName) -> PathBuf {
        self.root.join(file.path())
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let folder = self.root.join("tmp");
        make_folder(&folder)?;
        self.sweep.call_once(|| remove_left_overs(&folder));
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut salt = [0; 8];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| io::Error::other("no randomness"))?;
        let salt = u64::from_le_bytes(salt);
        let path = folder.join(format!("{}-{number}-{salt:016x}", std::process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Temporary {
            path,
            file,
            keep: false,
        })
    }
}

/// A file that is removed unless it was published.
struct Temporary {
    path: PathBuf,
    file: File,
    keep: bool,
}

impl Temporary {
    fn publish(mut self, target: &Path, replace: bool) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(0o400))?;
        self.file.sync_all()?;
        if replace {
            fs::rename(&self.path, target)?;
        } else {
            rename_new(&self.path, target)?;
        }
        self.keep = true;
        match target.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Best effort: what stays is swept later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames without replacing; falls back to a check where the file system cannot.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.exists() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        other => other.map_err(io::Error::from),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn remove_left_overs(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .map(|t| t.elapsed());
        if matches!(age, Ok(Ok(age)) if age > TEMPORARY_MAX_AGE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn list_folder(folder: &Path, found: &mut Vec<StoredFile>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<Id>().ok())
        else {
            continue;
        };
        match entry.metadata() {
            // Removed by another process between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(meta) => found.push(StoredFile {
                id,
                size_bytes: meta.len(),
            }),
        }
    }
    Ok(())
}

impl Store for LocalStore {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self) -> io::Result<()> {
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Config) {
            make_folder(&self.root.join(kind.folder()))?;
        }
        for prefix in 0..=255u8 {
            make_folder(&self.root.join("data").join(format!("{prefix:02x}")))?;
        }
        Ok(())
    }

    fn list(&self, kind: Kind) -> io::Result<Vec<StoredFile>> {
        let folder = self.root.join(kind.folder());
        let mut found = Vec::new();
        match kind {
            Kind::Config => match fs::metadata(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(meta) => found.push(StoredFile {
                    id: FileName::CONFIG.id,
                    size_bytes: meta.len(),
                }),
            },
            Kind::Pack => {
                for prefix in 0..=255u8 {
                    list_folder(&folder.join(format!("{prefix:02x}")), &mut found)?;
                }
            }
            _ => list_folder(&folder, &mut found)?,
        }
        Ok(found)
    }

    fn read_full(&self, file: &FileName, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        let limit = max_bytes.saturating_add(1);
        File::open(self.path(file))?
            .take(limit)
            .read_to_end(&mut data)?;
        if data.len() as u64 > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(data)
    }

    fn read_range(&self, file: &FileName, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        File::open(self.path(file))?.read_exact_at(buf, offset_bytes)
    }

    fn write(&self, file: &FileName, data: &[u8]) -> io::Result<()> {
        let target = self.path(file);
        let mut temporary = self.temporary()?;
        temporary.file.write_all(data)?;
        let replace = file.kind != Kind::Config;
        match temporary.publish(&target, replace) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A repository made by another tool may lack a folder; make it and write again.
                if let Some(folder) = target.parent() {
                    make_folder(folder)?;
                }
                let mut again = self.temporary()?;
                again.file.write_all(data)?;
                again.publish(&target, replace)
            }
            other => other,
        }
    }

    fn remove(&self, file: &FileName) -> io::Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// A local listing shows a new object at once.
    fn listing_delay(&self) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path());
        store.create().unwrap();
        let file = FileName::new(Kind::Pack, Id::of(b"x"));
        assert!(store.list(Kind::Pack).unwrap().is_empty());
        store.write(&file, b"0123456789").unwrap();
        store.write(&file, b"0123456789").unwrap();
        assert_eq!(store.list(Kind::Pack).unwrap()[0].size_bytes, 10);
        let mut part = [0; 3];
        store.read_range(&file, 4, &mut part).unwrap();
        assert_eq!(&part, b"456");
        let error = store.read_range(&file, 8, &mut part).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = store.read_full(&file, 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        store.remove(&file).unwrap();
        store.remove(&file).unwrap();
        assert!(store.list(Kind::Pack).unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn config_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path());
        store.create().unwrap();
        store.write(&FileName::CONFIG, b"a").unwrap();
        let error = store.write(&FileName::CONFIG, b"b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(store.read_full(&FileName::CONFIG, 9).unwrap(), b"a");
    }
}
