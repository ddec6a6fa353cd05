//! The unlinked file that takes what memory can't hold.
//!
//! It has no name, so it vanishes with the process however that ends; it holds guest memory, so
//! only its owner may open it while it still has a name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

const TRIES: u32 = 100;

/// Where chunks go. Tests put slow and failing ones in its place.
pub(super) trait SpillFile: Send + Sync + std::fmt::Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills `bytes` from `offset`.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl SpillFile for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}

/// Makes an unlinked file in `dir`.
pub(super) fn open(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        // Some file systems (NFS, older overlays) have no O_TMPFILE.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => open_and_unlink(dir),
        Err(errno) => Err(errno.into()),
    }
}

fn open_and_unlink(dir: &Path) -> io::Result<File> {
    let pid = std::process::id();
    for count in 0..TRIES {
        let path = dir.join(format!(".vmtwin-spool-{pid}-{count}"));
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn both_ways_leave_no_name_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            open(dir.path()).unwrap(),
            open_and_unlink(dir.path()).unwrap(),
        ] {
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.nlink(), 0);
            assert_eq!(metadata.mode() & 0o077, 0);
            SpillFile::write_at(&file, 5, b"abc").unwrap();
            let mut back = [0; 3];
            SpillFile::read_at(&file, 5, &mut back).unwrap();
            assert_eq!(&back, b"abc");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
