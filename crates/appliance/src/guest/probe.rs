//! What is on a block device, by the marks at known places.
//!
//! Sources: the on-disk layouts in Linux' documentation (ext4, XFS, btrfs), Microsoft's of FAT,
//! exFAT and NTFS, ECMA-119, LVM2's label, md's superblocks, LUKS.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A part of a group of LVM's.
pub(super) const LVM_MEMBER: &str = "LVM2_member";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Type, as `blkid` names it; `None` if nothing is known.
    pub(super) kind: Option<String>,
    pub(super) label: Option<String>,
}

/// A mark at a place, and where a label of at most so many bytes is.
struct Mark {
    kind: &'static str,
    at: usize,
    bytes: &'static [u8],
    label: Option<(usize, usize)>,
}

const fn mark(kind: &'static str, at: usize, bytes: &'static [u8]) -> Mark {
    Mark {
        kind,
        at,
        bytes,
        label: None,
    }
}

const fn labelled(mark: Mark, at: usize, len: usize) -> Mark {
    Mark {
        label: Some((at, len)),
        ..mark
    }
}

/// The first that fits counts: what is built of devices is before what is in them.
const MARKS: &[Mark] = &[
    mark("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    mark("BitLocker", 3, b"-FVE-FS-"),
    mark("linux_raid_member", 4096, b"\xfc\x4e\x2b\xa9"),
    mark("linux_raid_member", 0, b"\xfc\x4e\x2b\xa9"),
    labelled(mark("xfs", 0, b"XFSB"), 108, 12),
    labelled(mark("btrfs", 0x10040, b"_BHRfS_M"), 0x1012b, 255),
    mark("ntfs", 3, b"NTFS    "),
    mark("exfat", 3, b"EXFAT   "),
    labelled(mark("ext4", 0x438, b"\x53\xef"), 0x478, 16),
    labelled(mark("iso9660", 32769, b"CD001"), 32808, 32),
    mark("squashfs", 0, b"hsqs"),
    mark("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    mark("swap", 4086, b"SWAPSPACE2"),
    mark("swap", 4086, b"SWAP-SPACE"),
    labelled(mark("vfat", 82, b"FAT32   "), 71, 11),
    labelled(mark("vfat", 54, b"FAT"), 43, 11),
];

/// Reads the marks of a device.
pub(super) fn probe(path: &Path) -> Found {
    const HEAD_BYTES: usize = 0x10300;
    let mut head = vec![0; HEAD_BYTES];
    let Ok(file) = File::open(path) else {
        return Found::default();
    };
    let mut filled = 0;
    while let Ok(n @ 1..) = file.read_at(&mut head[filled..], filled as u64) {
        filled += n;
        if filled == head.len() {
            break;
        }
    }
    head.truncate(filled);
    look(&head)
}

fn look(head: &[u8]) -> Found {
    if (0..4).any(|sector| {
        let at = |offset: usize, bytes: &[u8]| has(head, sector * 512 + offset, bytes);
        at(0, b"LABELONE") && at(24, b"LVM2 001")
    }) {
        return Found {
            kind: Some(LVM_MEMBER.into()),
            label: None,
        };
    }
    let Some(mark) = MARKS.iter().find(|mark| has(head, mark.at, mark.bytes)) else {
        return Found::default();
    };
    Found {
        kind: Some(mark.kind.into()),
        label: mark
            .label
            .and_then(|(at, len)| text(head.get(at..at + len)?)),
    }
}

fn has(head: &[u8], at: usize, bytes: &[u8]) -> bool {
    head.get(at..at + bytes.len()) == Some(bytes)
}

/// A label, up to its padding.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
    let text = text.trim();
    (!text.is_empty() && text != "NO NAME").then(|| text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn head(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 0x10300];
        for (at, bytes) in marks {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn kinds_and_labels() {
        let found = look(&head(&[(0x438, b"\x53\xef"), (0x478, b"root\0")]));
        assert_eq!(found.kind.unwrap(), "ext4");
        assert_eq!(found.label.unwrap(), "root");
        let found = look(&head(&[(82, b"FAT32   "), (71, b"EFI        ")]));
        assert_eq!(found.kind.unwrap(), "vfat");
        assert_eq!(found.label.unwrap(), "EFI");
        let found = look(&head(&[(512, b"LABELONE"), (536, b"LVM2 001")]));
        assert_eq!(found.kind.unwrap(), LVM_MEMBER);
        assert_eq!(look(&head(&[])), Found::default());
        assert_eq!(look(&[]), Found::default());
    }
}
