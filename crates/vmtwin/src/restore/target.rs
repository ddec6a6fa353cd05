//! A file under restore: written under another name, published by a rename, and taken back unless
//! it is kept.
//!
//! ```text
//! Target ─ check ─► begin ─► Partial ─ publish ─► Published ─ keep ─► (done)
//!                            └ drop: removed      └ drop: removed, and what was replaced returns
//! ```
//! Where a file is replaced, it and ours exchange names in one step, so that the old one is there
//! until everything else has worked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::error::RestoreError;
use super::guard::Guard;
use super::in_use;
use super::take_back::{OurFile, TakeBack};

/// What is added to a name while the file is written.
const PARTIAL_SUFFIX: &str = ".vmtwin-partial";

/// A file to be written.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    partial: PathBuf,
    force: bool,
}

impl Target {
    /// The file `name` in `dir`, which is absolute.
    pub(super) fn new(dir: &Path, name: &str, force: bool) -> Target {
        Target {
            path: dir.join(name),
            partial: dir.join(format!(".{name}{PARTIAL_SUFFIX}")),
            force,
        }
    }

    /// Where it will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may be written; changes nothing.
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let path = self.path.clone();
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(RestoreError::file("look at", path)(error)),
        };
        if !found.is_file() && !found.is_symlink() {
            return Err(RestoreError::NotAFile { path });
        }
        if !self.force {
            return Err(RestoreError::Exists { path });
        }
        in_use::refuse(&path)
    }

    /// Makes the partial file, empty, for nobody else to read. One that a killed restore left is
    /// removed; the lock of the folder says that nobody writes to it.
    pub(super) fn begin(self, guard: &Guard) -> Result<(Partial, File), RestoreError> {
        let error = |source| RestoreError::file("make", &self.partial)(source);
        let _ = fs::remove_file(&self.partial);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&self.partial).map_err(error)?;
        let ours = OurFile::new(&self.path, &self.partial, &file).map_err(error)?;
        let partial = Partial {
            path: self.partial,
            target: self.path,
            force: self.force,
            armed: true,
        };
        guard.add(&TakeBack::File(ours))?;
        Ok((partial, file))
    }
}

/// A file that is being written. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    /// The name to come.
    target: PathBuf,
    force: bool,
    armed: bool,
}

impl Partial {
    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name. What was written must be durable.
    pub(super) fn publish(mut self) -> Result<Published, RestoreError> {
        let (from, to) = (self.path.clone(), self.target.clone());
        let exists = || RestoreError::Exists { path: to.clone() };
        let replaced = match rename_new(&from, &to) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !self.force {
                    return Err(exists());
                }
                exchange(&from, &to).map_err(RestoreError::file("replace", &to))?
            }
            Err(error) => return Err(RestoreError::file("rename to", &to)(error)),
        };
        self.armed = false;
        Ok(Published {
            path: to,
            replaced: replaced.then_some(from),
            armed: true,
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.armed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file under its own name. Dropping it takes it back.
#[derive(Debug)]
pub(super) struct Published {
    path: PathBuf,
    /// Where the file is that it replaced.
    replaced: Option<PathBuf>,
    armed: bool,
}

impl Published {
    /// Keeps it; what it replaced is removed.
    pub(super) fn keep(mut self) {
        self.armed = false;
        if let Some(old) = &self.replaced {
            let _ = fs::remove_file(old);
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if self.armed {
            let _ = match &self.replaced {
                Some(old) => fs::rename(old, &self.path),
                None => fs::remove_file(&self.path),
            };
        }
    }
}

/// Renames, but never onto a file.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without that kind of rename: a link is never made onto a file either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

/// Exchanges two names; `false` where the old file had to go at once.
fn exchange(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(from, to).map(|()| false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn written(dir: &Path, force: bool) -> Partial {
        let target = Target::new(dir, "a.raw", force);
        let (partial, mut file) = target.begin(&Guard::none()).unwrap();
        file.write_all(b"new").unwrap();
        partial
    }

    #[test]
    fn a_new_file_appears_when_published_and_stays_when_kept() {
        let dir = tempfile::tempdir().unwrap();
        let partial = written(dir.path(), false);
        assert_eq!(names(dir.path()), [".a.raw.vmtwin-partial"]);
        let published = partial.publish().unwrap();
        assert_eq!(names(dir.path()), ["a.raw"]);
        published.keep();
        assert_eq!(names(dir.path()), ["a.raw"]);
    }

    #[test]
    fn what_is_not_kept_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        drop(written(dir.path(), false));
        assert!(names(dir.path()).is_empty());
        drop(written(dir.path(), false).publish().unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_file_is_replaced_only_with_force_and_returns_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        fs::write(&path, "old").unwrap();
        let check = |force| Target::new(dir.path(), "a.raw", force).check();
        assert!(matches!(check(false), Err(RestoreError::Exists { .. })));
        check(true).unwrap();
        // It came after the check.
        let refused = written(dir.path(), false).publish();
        assert!(matches!(refused, Err(RestoreError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let published = written(dir.path(), true).publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(published);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        written(dir.path(), true).publish().unwrap().keep();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.raw"]);
    }

    #[test]
    fn a_folder_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a.raw")).unwrap();
        let refused = Target::new(dir.path(), "a.raw", true).check();
        assert!(matches!(refused, Err(RestoreError::NotAFile { .. })));
    }

    #[test]
    fn a_left_over_partial_file_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".a.raw.vmtwin-partial"), "left over").unwrap();
        written(dir.path(), false).publish().unwrap().keep();
        assert_eq!(fs::read(dir.path().join("a.raw")).unwrap(), b"new");
    }
}
