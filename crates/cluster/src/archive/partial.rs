//! The file that becomes an archive, while it has no name of its own yet.
//!
//! Whoever writes one holds a lock on it (`flock`), which ends with its process however that ends: so one
//! without a lock was left behind, and is removed by the next who writes to that folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;

const PREFIX: &str = ".vmtwin-cluster-";
const SUFFIX: &str = ".partial";

/// A new one in a folder, locked, once those that were left behind are removed.
pub(super) fn begin(folder: &Path) -> io::Result<NamedTempFile> {
    sweep(folder);
    loop {
        let partial = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(SUFFIX)
            .tempfile_in(folder)?;
        // Where the file system has no locks nobody else gets one either, and nothing is removed.
        let _ = partial.as_file().lock();
        // Somebody swept between the two.
        if partial.as_file().metadata()?.nlink() > 0 {
            return Ok(partial);
        }
    }
}

/// Removes what no process holds. It is in nobody's way: what cannot be removed stays.
fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        // Of the entry itself: no link is followed.
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = remove_if_left(&entry.path());
        }
    }
}

fn remove_if_left(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).open(path)?;
    match file.try_lock() {
        // The lock is held until it is gone, so that its writer cannot come in between.
        Ok(()) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}
