//! Storing captured memory: taken apart into RAM images, or as it is where that can't be done.

use anyhow::{Context, Result};
use vmtwin_hypervisor::spool::SpoolData;
use vmtwin_migration::{Limits, StreamIndex};
use vmtwin_repository::{Backup, FileStats, ImageOptions};

use crate::cancel::Cancel;
use crate::content::{self, ContentMemory};
use crate::source::{RamSource, SpoolBytes};
use crate::ui::{BarProgress, Ui};

/// Shortest and longest grain of memory images, bytes. Changes in memory are single pages here and
/// there: docs/adr/0002-snapshot-layout.md has what grains cost.
const GRAIN_BYTES: std::ops::RangeInclusive<u32> = 8 << 10..=64 << 10;
/// Grains of a RAM block, unless they would get too long: each that holds data is in the index.
const MAX_GRAINS: u64 = 512 << 10;

/// What was stored, and what the user should know.
pub(crate) struct StoredMemory {
    pub(crate) content: ContentMemory,
    pub(crate) stats: Vec<FileStats>,
    pub(crate) warning: Option<String>,
}

/// Stores a whole stream.
pub(crate) fn store(
    backup: &Backup,
    spool: &SpoolData,
    ui: &Ui,
    cancel: &Cancel,
) -> Result<StoredMemory> {
    match StreamIndex::parse(&SpoolBytes(spool), &Limits::default()) {
        Ok(index) => store_parsed(backup, spool, &index, ui, cancel),
        Err(error) => store_stream(backup, spool, error.to_string()),
    }
}

fn store_parsed(
    backup: &Backup,
    spool: &SpoolData,
    index: &StreamIndex,
    ui: &Ui,
    cancel: &Cancel,
) -> Result<StoredMemory> {
    let bytes = SpoolBytes(spool);
    let mut stats = vec![
        backup.add_bytes(content::MEMORY_LAYOUT, &serde_json::to_vec(index.layout())?)?,
        backup.add_bytes(content::MEMORY_HEAD, &read_range(spool, index.head())?)?,
        backup.add_bytes(content::MEMORY_TAIL, &read_range(spool, index.tail())?)?,
    ];
    let total: u64 = index.blocks().iter().map(|b| b.size_bytes).sum();
    let progress = BarProgress {
        bar: ui.bar("storing memory", total),
        cancel,
    };
    for (number, block) in index.blocks().iter().enumerate() {
        let image = index
            .image(&bytes, number)
            .context("a RAM block is missing")?;
        let options = ImageOptions {
            grain_bytes: grain_bytes(block.size_bytes),
            piece_bytes: None,
            parent: None,
        };
        stats.push(backup.add_image(
            &content::ram_dir(number),
            &RamSource(image),
            &options,
            &progress,
        )?);
    }
    progress.bar.finish_and_clear();
    let content = ContentMemory::Parsed {
        blocks: index.blocks().len(),
        stream_bytes: spool.len_bytes(),
    };
    Ok(StoredMemory {
        content,
        stats,
        warning: None,
    })
}

/// The grain of a RAM block of this size. It depends on nothing else: the next backup must find the
/// same chunks.
fn grain_bytes(block_bytes: u64) -> u32 {
    let (mut grain, longest) = (*GRAIN_BYTES.start(), *GRAIN_BYTES.end());
    while grain < longest && block_bytes > u64::from(grain) * MAX_GRAINS {
        grain *= 2;
    }
    grain
}

fn store_stream(backup: &Backup, spool: &SpoolData, reason: String) -> Result<StoredMemory> {
    let mut reader = SpoolReader { spool, at: 0 };
    let stats = backup.add_reader(content::MEMORY_STREAM, &mut reader)?;
    let warning =
        format!("memory was stored as one stream, since it could not be parsed: {reason}");
    let content = ContentMemory::Stream {
        stream_bytes: spool.len_bytes(),
        reason,
    };
    Ok(StoredMemory {
        content,
        stats: vec![stats],
        warning: Some(warning),
    })
}

fn read_range(spool: &SpoolData, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start)?];
    spool.read_at(range.start, &mut bytes)?;
    Ok(bytes)
}

/// A spool, read from beginning to end.
struct SpoolReader<'a> {
    spool: &'a SpoolData,
    at: u64,
}

impl std::io::Read for SpoolReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.spool.len_bytes() - self.at;
        let n = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.spool.read_at(self.at, &mut buf[..n])?;
        self.at += n as u64;
        Ok(n)
    }
}
