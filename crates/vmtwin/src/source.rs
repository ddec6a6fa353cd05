//! Sources of images: joins NBD exports and captured memory to the repository's ingest.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmtwin_hypervisor::spool::SpoolData;
use vmtwin_migration::{Bytes, RamImage};
use vmtwin_nbd::{Client, StatusExtent, context};
use vmtwin_repository::{Extent, ExtentKind, ImageSource};

/// How much of a disk one question after its extents covers, bytes.
const STATUS_SPAN_BYTES: u64 = 1 << 30;

/// Which blocks of a disk may differ from its parent's; all others are as they were.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    /// A bit for every [`BLOCK_BYTES`].
    bits: Vec<u64>,
    size_bytes: u64,
}

/// What one bit of [`Changes`] stands for, bytes.
const BLOCK_BYTES: u64 = 64 << 10;

impl Changes {
    /// None yet.
    pub(crate) fn none(size_bytes: u64) -> Changes {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        Changes {
            bits: vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(0)],
            size_bytes,
        }
    }

    /// All blocks that a stretch touches. What is beyond the end is left out.
    pub(crate) fn add(&mut self, offset: u64, len_bytes: u64) {
        let end = offset.saturating_add(len_bytes).min(self.size_bytes);
        if offset >= end {
            return;
        }
        for block in offset / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            let (word, bit) = (block / 64, block % 64);
            if let Some(word) = usize::try_from(word)
                .ok()
                .and_then(|w| self.bits.get_mut(w))
            {
                *word |= 1 << bit;
            }
        }
    }

    /// All that an export marks in a context, where its status passes `is_changed`.
    pub(crate) fn add_marked(
        &mut self,
        client: &Client,
        context: &str,
        is_changed: impl Fn(u32) -> bool,
    ) -> Result<(), vmtwin_nbd::Error> {
        let mut at = 0;
        for extent in client.extents(context, 0, client.size_bytes()) {
            let extent = extent?;
            if is_changed(extent.flags) {
                self.add(at, extent.len_bytes);
            }
            at += extent.len_bytes;
        }
        Ok(())
    }

    /// Stretches of changed blocks: offset and length.
    pub(crate) fn stretches(&self) -> Vec<(u64, u64)> {
        let (mut stretches, mut at) = (Vec::new(), 0);
        while at < self.size_bytes {
            let (changed, end) = self.run_at(at);
            if changed {
                stretches.push((at, end - at));
            }
            at = end;
        }
        stretches
    }

    /// Whether the byte at `offset` may have changed, and up to where it is the same.
    fn run_at(&self, offset: u64) -> (bool, u64) {
        let first = offset / BLOCK_BYTES;
        let word_of = |block: u64| {
            let word = usize::try_from(block / 64).ok();
            word.and_then(|word| self.bits.get(word))
                .copied()
                .unwrap_or(0)
        };
        let changed = word_of(first) >> (first % 64) & 1 == 1;
        let mut block = first;
        loop {
            // Bits that differ from the first one's, from this block on.
            let other = match changed {
                true => !word_of(block),
                false => word_of(block),
            };
            let other = other & (u64::MAX << (block % 64));
            block = block / 64 * 64 + u64::from(other.trailing_zeros());
            if other != 0 || block * BLOCK_BYTES >= self.size_bytes {
                return (changed, (block * BLOCK_BYTES).min(self.size_bytes));
            }
        }
    }
}

/// A disk behind an NBD export.
pub(crate) struct NbdSource {
    client: Client,
    /// What may have changed since the parent, where that is known.
    changes: Option<Changes>,
    /// The answer to the last question: where it begins, and its extents.
    window: Mutex<(u64, Vec<StatusExtent>)>,
}

impl NbdSource {
    pub(crate) fn new(client: Client, changes: Option<Changes>) -> NbdSource {
        NbdSource {
            client,
            changes,
            window: Mutex::new((0, Vec::new())),
        }
    }

    fn lookup(window: &(u64, Vec<StatusExtent>), offset: u64) -> Option<Extent> {
        let mut at = window.0;
        for extent in &window.1 {
            let end = at + extent.len_bytes;
            if (at..end).contains(&offset) {
                let zero = extent.flags & context::ZERO != 0;
                let kind = if zero {
                    ExtentKind::Hole
                } else {
                    ExtentKind::Data
                };
                return Some(Extent {
                    len: end - offset,
                    kind,
                });
            }
            at = end;
        }
        None
    }
}

impl ImageSource for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.client.size_bytes()
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let Some(changes) = &self.changes else {
            return self.allocation_at(offset);
        };
        let (changed, end) = changes.run_at(offset);
        if !changed {
            return Ok(Extent {
                len: end - offset,
                kind: ExtentKind::Unchanged,
            });
        }
        let extent = self.allocation_at(offset)?;
        Ok(Extent {
            len: extent.len.min(end - offset),
            ..extent
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.client.read_at(offset, buf).map_err(io::Error::other)
    }
}

impl NbdSource {
    /// What the image itself says of an offset.
    fn allocation_at(&self, offset: u64) -> io::Result<Extent> {
        let left = self.client.size_bytes().saturating_sub(offset);
        if !self.client.has_context(context::BASE_ALLOCATION) {
            return Ok(Extent {
                len: left,
                kind: ExtentKind::Data,
            });
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(extent) = Self::lookup(&window, offset) {
            return Ok(extent);
        }
        let span = left.min(STATUS_SPAN_BYTES);
        let extents = self
            .client
            .block_status(context::BASE_ALLOCATION, offset, span)
            .map_err(io::Error::other)?;
        *window = (offset, extents);
        Self::lookup(&window, offset).ok_or_else(|| io::Error::other("no extent at the offset"))
    }
}

/// A spooled stream, for the parser.
pub(crate) struct SpoolBytes<'a>(pub(crate) &'a SpoolData);

impl Bytes for SpoolBytes<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// One block of captured RAM.
pub(crate) struct RamSource<'a>(pub(crate) RamImage<'a>);

impl ImageSource for RamSource<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let extent = self.0.extent_at(offset);
        let kind = match extent.kind {
            vmtwin_migration::ExtentKind::Data => ExtentKind::Data,
            vmtwin_migration::ExtentKind::Zero => ExtentKind::Hole,
        };
        Ok(Extent {
            len: extent.len_bytes,
            kind,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of flags, one for each block.
        #[test]
        fn changed_blocks_are_found_again(
            size in 1u64..20_000_000,
            writes in prop::collection::vec((0u64..20_000_000, 0u64..3_000_000), 0..12),
        ) {
            let mut changes = Changes::none(size);
            let blocks = size.div_ceil(BLOCK_BYTES);
            let mut model = vec![false; usize::try_from(blocks).unwrap()];
            for (offset, len) in writes {
                changes.add(offset, len);
                for (block, flag) in (0..).zip(&mut model) {
                    let (start, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
                    *flag |= offset.max(start) < (offset + len).min(end).min(size);
                }
            }
            let mut expected: Vec<(u64, u64)> = Vec::new();
            for (block, _) in (0u64..).zip(&model).filter(|(_, flag)| **flag) {
                let start = block * BLOCK_BYTES;
                let len = BLOCK_BYTES.min(size - start);
                match expected.last_mut() {
                    Some((at, total)) if *at + *total == start => *total += len,
                    _ => expected.push((start, len)),
                }
            }
            prop_assert_eq!(changes.stretches(), expected);
        }
    }
}
