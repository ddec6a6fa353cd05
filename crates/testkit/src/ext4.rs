//! The ext4 tools, and what they find on the disk of a guest in mode `ext4`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk::{DiskFormat, copy_to_raw};
use crate::process::{Workdir, run};

/// An ext4 disk image and the ledger on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4State {
    /// The superblock says `clean` and the journal needs no replay: it was unmounted.
    pub clean: bool,
    /// The full check found nothing to mend, journal replay aside.
    pub sound: bool,
    /// The guest's program ended in order after the last line.
    pub ended: bool,
    /// The numbers in the ledger, as they are after the journal's replay.
    pub lines: Vec<u64>,
}

impl Ext4State {
    /// Reads a disk image, or a URI that QEMU can read. The image is not changed.
    pub fn read(disk: impl AsRef<OsStr>, format: DiskFormat) -> Ext4State {
        let work = Workdir::new();
        let raw = work.join("copy.raw");
        copy_to_raw(disk.as_ref(), format, &raw);
        let superblock = Superblock::read(&raw);
        replay_journal(&raw);
        Ext4State {
            clean: superblock.clean && !superblock.needs_recovery,
            sound: is_sound(&raw),
            ended: debugfs(&raw, "stat /clean").contains("Inode:"),
            lines: debugfs(&raw, "cat /ledger")
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect(),
        }
    }

    /// Panics unless the file system is sound and holds 1, 2, 3, … without a gap,
    /// at least up to the last number that was acknowledged.
    pub fn assert_holds(&self, acknowledged: u64) {
        assert!(self.sound, "the file system is damaged");
        let in_turn = self.lines.iter().copied().eq(1..=self.lines.len() as u64);
        assert!(in_turn, "the ledger has a gap");
        let last = self.lines.len() as u64;
        assert!(
            last >= acknowledged,
            "{acknowledged} was acknowledged; the disk ends with {last}"
        );
    }
}

/// What a file system says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Its state is `clean`.
    pub(crate) clean: bool,
    /// Its journal has to be replayed.
    pub(crate) needs_recovery: bool,
}

impl Superblock {
    pub(crate) fn read(raw: &Path) -> Superblock {
        let header = tool(run(Command::new("/sbin/dumpe2fs").arg("-h").arg(raw)).stdout);
        Superblock::parse(&header)
    }

    fn parse(header: &str) -> Superblock {
        let mut lines = header.lines();
        let state = lines.find_map(|line| line.strip_prefix("Filesystem state:"));
        Superblock {
            clean: state.is_some_and(|state| state.trim() == "clean"),
            needs_recovery: header.contains("needs_recovery"),
        }
    }
}

fn tool(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Changes the image, as mounting it would.
pub(crate) fn replay_journal(raw: &Path) {
    let status = Command::new("/sbin/e2fsck")
        .args(["-E", "journal_only", "-y"])
        .arg(raw)
        .output();
    status.expect("starting e2fsck");
}

/// Whether a full check finds nothing to mend; the image is not changed.
pub(crate) fn is_sound(raw: &Path) -> bool {
    let output = Command::new("/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(raw)
        .output();
    output.expect("starting e2fsck").status.success()
}

fn debugfs(raw: &Path, request: &str) -> String {
    tool(run(Command::new("/sbin/debugfs").args(["-R", request]).arg(raw)).stdout)
}

/// Copies a folder out of an image into `into`, and returns the copy's path. What
/// cannot be read is missing in it.
pub(crate) fn extract(raw: &Path, folder: &str, into: &Path) -> PathBuf {
    std::fs::create_dir(into).expect("making a folder");
    debugfs(raw, &format!("rdump {folder} {}", into.display()));
    let name = Path::new(folder).file_name();
    into.join(name.expect("a folder with a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_tells_its_state() {
        let features = "Filesystem features:      has_journal extent 64bit";
        let clean = format!("{features}\nFilesystem state:         clean\n");
        let dirty = format!("{features} needs_recovery\nFilesystem state:         not clean\n");
        let of = |clean, needs_recovery| Superblock {
            clean,
            needs_recovery,
        };
        assert_eq!(Superblock::parse(&clean), of(true, false));
        assert_eq!(Superblock::parse(&dirty), of(false, true));
        assert_eq!(Superblock::parse(""), of(false, false));
    }
}
