//! Storing captured memory: taken apart into RAM images, or as it is where that can't be done.

use anyhow::{Context, Result};
use vmtwin_hypervisor::spool::SpoolData;
use vmtwin_migration::{Limits, StreamIndex};
use vmtwin_repository::{Backup, FileStats, ImageOptions};

use crate::cancel::Cancel;
use crate::content::{self, ContentMemory};
use crate::source::{RamSource, SpoolBytes};
use crate::ui::{BarProgress, Ui};

/// Grain of memory images: changes in memory are small and scattered, bytes.
const GRAIN_BYTES: u32 = 64 << 10;

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
    let options = ImageOptions {
        grain_bytes: GRAIN_BYTES,
        ..ImageOptions::default()
    };
    let total: u64 = index.blocks().iter().map(|b| b.size_bytes).sum();
    let progress = BarProgress {
        bar: ui.bar("storing memory", total),
        cancel,
    };
    for block in 0..index.blocks().len() {
        let image = index
            .image(&bytes, block)
            .context("a RAM block is missing")?;
        stats.push(backup.add_image(
            &content::ram_dir(block),
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
