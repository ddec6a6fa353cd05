//! The folder that a restore writes to: made if it is not there, held alone, gone if it failed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::RestoreError;
use super::guard::Guard;
use super::take_back::TakeBack;

/// An open folder. Dropping it removes the folders that it made, where they are empty.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    made: Vec<PathBuf>,
    /// Holds the lock.
    lock: Option<File>,
}

impl Folder {
    /// Opens or makes the folder.
    pub(super) fn open(path: &Path) -> Result<Folder, RestoreError> {
        let error = RestoreError::file("find", path);
        let absolute = std::path::absolute(path).map_err(error)?;
        let mut folder = Folder {
            path: absolute.clone(),
            made: Vec::new(),
            lock: None,
        };
        folder.make_missing(&absolute, |_| Ok(()))?;
        folder.path = absolute
            .canonicalize()
            .map_err(RestoreError::file("open", &absolute))?;
        folder.lock()?;
        Ok(folder)
    }

    /// Its path, absolute and without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folders that it made, outermost first.
    pub(super) fn made(&self) -> &[PathBuf] {
        &self.made
    }

    /// The lock, to be held by another process too; none on a file system that has no locks.
    pub(super) fn lock_fd(&self) -> io::Result<Option<OwnedFd>> {
        let lock = self.lock.as_ref().map(File::try_clone).transpose()?;
        Ok(lock.map(OwnedFd::from))
    }

    /// Makes a folder and those above it that are not there, for nobody else to read.
    pub(super) fn make(&mut self, path: &Path, guard: &Guard) -> Result<(), RestoreError> {
        self.make_missing(path, |dir| guard.add(&TakeBack::Folder(dir.into())))
    }

    fn make_missing(
        &mut self,
        path: &Path,
        note: impl Fn(&Path) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
        for dir in missing.into_iter().rev() {
            note(dir)?;
            let made = DirBuilder::new().mode(0o700).create(dir);
            made.map_err(RestoreError::file("make", dir))?;
            self.made.push(dir.to_owned());
        }
        Ok(())
    }

    /// Keeps the folders that were made.
    pub(super) fn keep(&mut self) {
        self.made.clear();
    }

    fn lock(&mut self) -> Result<(), RestoreError> {
        let file = File::open(&self.path).map_err(RestoreError::file("open", &self.path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(RestoreError::FolderBusy {
                dir: self.path.clone(),
            }),
            // A file system that can't lock folders.
            Err(_) => Ok(()),
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_folders_go_unless_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        drop(Folder::open(&path).unwrap());
        assert!(!root.path().join("a").exists());
        Folder::open(&path).unwrap().keep();
        assert!(path.exists());
        drop(Folder::open(&path).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn one_restore_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let _first = Folder::open(root.path()).unwrap();
        let second = Folder::open(root.path());
        assert!(matches!(second, Err(RestoreError::FolderBusy { .. })));
    }
}
