//! Reads, on the host, what the guest's ticker wrote to a disk, and says whether
//! it can be of one instant. The layout is told in `guest/ticker.c`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::disk::{DiskFormat, copy_to_raw};
use crate::process::Workdir;

const BLOCK_SIZE: usize = 4096;
const WORDS: usize = BLOCK_SIZE / 8;
const MAX_SLOTS: u64 = 1024;
const MAGIC: u64 = 0x6b74_6977_6d76_3176;

/// The numbers on one disk of a guest in mode `count` or `load`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLedger {
    /// Which disk the guest took it for: 1, 2, ...
    pub disk: u64,
    /// The last number that was durable.
    pub n: u64,
    /// Whether the guest ended in order after it.
    pub clean: bool,
    /// What cannot be of one instant, in words; empty when all is well.
    pub faults: Vec<String>,
}

impl DiskLedger {
    /// Reads a disk image, or a URI that QEMU can read. Slots are checked for
    /// numbers from `first` on, what the guest's `ready` line told (1 for a new disk).
    pub fn read_since(disk: impl AsRef<OsStr>, format: DiskFormat, first: u64) -> DiskLedger {
        let work = Workdir::new();
        let raw = work.join("copy.raw");
        copy_to_raw(disk.as_ref(), format, &raw);
        read_raw(
            &File::open(&raw).expect("opening the copy of a disk"),
            first,
        )
    }

    /// Reads a disk that was empty when the guest began.
    pub fn read(disk: impl AsRef<OsStr>, format: DiskFormat) -> DiskLedger {
        DiskLedger::read_since(disk, format, 1)
    }

    /// Panics when the disk holds writes of different instants.
    pub fn assert_whole(&self) {
        assert!(
            self.faults.is_empty(),
            "disk {} is not of one instant: {:#?}",
            self.disk,
            self.faults
        );
    }
}

/// Panics unless the disks, and memory if its number is given, are of one instant:
/// memory ≥ disk 1 ≥ disk 2 ≥ … ≥ memory - 1.
pub fn assert_one_instant(memory_n: Option<u64>, disks: &[DiskLedger]) {
    disks.iter().for_each(DiskLedger::assert_whole);
    let numbers: Vec<u64> = memory_n
        .into_iter()
        .chain(disks.iter().map(|disk| disk.n))
        .collect();
    let falling = numbers.windows(2).all(|pair| pair[0] >= pair[1]);
    let near = numbers
        .first()
        .zip(numbers.last())
        .is_none_or(|(first, last)| first - last <= 1);
    assert!(
        falling && near,
        "memory (if given) and disks are of different instants: {numbers:?}"
    );
}

struct Block {
    n: u64,
    disk: u64,
    flags: u64,
}

/// `Ok(None)` is a block that was never written.
fn read_block(file: &File, index: u64) -> Result<Option<Block>, String> {
    let mut bytes = [0; BLOCK_SIZE];
    file.read_exact_at(&mut bytes, index * BLOCK_SIZE as u64)
        .expect("reading the copy of a disk");
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    if words.iter().all(|word| *word == 0) {
        return Ok(None);
    }
    let sum = words[..WORDS - 1]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, word| {
            (sum ^ word).wrapping_mul(0x100_0000_01b3)
        });
    let [magic, n, disk, flags] = [words[0], words[1], words[2], words[3]];
    if magic != MAGIC || sum != words[WORDS - 1] || words[4..WORDS - 1].iter().any(|w| *w != n) {
        return Err(format!("block {index} is damaged"));
    }
    Ok(Some(Block { n, disk, flags }))
}

fn read_raw(file: &File, first: u64) -> DiskLedger {
    let mut ledger = DiskLedger {
        disk: 0,
        n: 0,
        clean: false,
        faults: Vec::new(),
    };
    match read_block(file, 0) {
        Ok(None) => return ledger,
        Ok(Some(header)) => {
            ledger.disk = header.disk;
            ledger.n = header.n;
            ledger.clean = header.flags & 1 == 1;
        }
        Err(fault) => {
            ledger.faults.push(fault);
            return ledger;
        }
    }
    let size = file.metadata().expect("the size of a copy").len();
    let slots = (size / BLOCK_SIZE as u64 - 1).min(MAX_SLOTS);
    ledger.faults = (1..=slots)
        .filter_map(|slot| slot_fault(file, &ledger, slots, first, slot))
        .collect();
    ledger
}

/// A slot holds the last number that falls to it up to the header's n; the one of
/// n + 1 may have got its number already.
fn slot_fault(
    file: &File,
    ledger: &DiskLedger,
    slots: u64,
    first: u64,
    slot: u64,
) -> Option<String> {
    let rounds = (ledger.n + slots - slot) / slots;
    let expected = if rounds == 0 {
        0
    } else {
        slot + (rounds - 1) * slots
    };
    let (found, disk) = match read_block(file, slot) {
        Ok(block) => block.map_or((0, ledger.disk), |block| (block.n, block.disk)),
        Err(fault) => return Some(fault),
    };
    if disk != ledger.disk {
        return Some(format!("block {slot} is of disk {disk}"));
    }
    let next = found == ledger.n + 1 && (found - 1) % slots + 1 == slot;
    let known = expected >= first || expected == 0 && first == 1;
    (known && found != expected && !next).then(|| {
        format!(
            "block {slot} holds {found}, not {expected} (header: {})",
            ledger.n
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u64, disk: u64) -> Vec<u8> {
        let mut words = vec![n; WORDS];
        (words[0], words[2], words[3]) = (MAGIC, disk, 0);
        words[WORDS - 1] = words[..WORDS - 1]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |sum: u64, word| {
                (sum ^ word).wrapping_mul(0x100_0000_01b3)
            });
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A disk of four slots after the numbers 1 to `n`.
    fn disk(n: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 * BLOCK_SIZE as u64).unwrap();
        for i in 1..=n {
            put(&file, 1 + (i - 1) % 4, i);
            put(&file, 0, i);
        }
        file
    }

    fn put(file: &File, index: u64, n: u64) {
        file.write_all_at(&block(n, 1), index * BLOCK_SIZE as u64)
            .unwrap();
    }

    #[test]
    fn every_number_in_turn_is_whole() {
        for n in 0..12 {
            let ledger = read_raw(&disk(n), 1);
            assert_eq!(ledger.n, n);
            ledger.assert_whole();
        }
    }

    #[test]
    fn the_next_number_may_be_in_its_slot() {
        let file = disk(6);
        put(&file, 3, 7);
        read_raw(&file, 1).assert_whole();
    }

    #[test]
    fn a_write_of_another_instant_is_found() {
        let late = disk(6);
        put(&late, 4, 8);
        assert_eq!(read_raw(&late, 1).faults.len(), 1);
        let lost = disk(6);
        put(&lost, 2, 2);
        assert_eq!(read_raw(&lost, 1).faults.len(), 1);
    }

    #[test]
    fn damage_is_found() {
        let file = disk(6);
        file.write_all_at(b"x", 2 * BLOCK_SIZE as u64 + 77).unwrap();
        assert_eq!(read_raw(&file, 1).faults, ["block 2 is damaged"]);
    }

    #[test]
    #[should_panic(expected = "different instants")]
    fn disks_two_numbers_apart_are_refused() {
        let of = |n| DiskLedger {
            disk: 1,
            n,
            clean: false,
            faults: Vec::new(),
        };
        assert_one_instant(Some(9), &[of(8), of(7)]);
    }
}
