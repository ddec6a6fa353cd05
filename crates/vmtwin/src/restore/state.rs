//! The live state in a snapshot: read, checked, and ready to be made into a stream.

use vmtwin_migration::Layout;
use vmtwin_repository::{Image, SnapshotReader};

use super::error::RestoreError;
use super::inventory::read_json;
use crate::content::{
    ContentMemory, MAX_HEAD_BYTES, MAX_TAIL_BYTES, MEMORY_HEAD, MEMORY_LAYOUT, MEMORY_STREAM,
    MEMORY_TAIL, ram_dir,
};

/// Newest format of a layout that the crate `migration` knows.
const LAYOUT_FORMAT: u32 = 1;

/// A live state.
pub(super) enum StoredState {
    /// Taken apart.
    Parsed(ParsedState),
    /// As QEMU wrote it.
    Stream {
        /// Its length, as the list says.
        stream_bytes: u64,
    },
}

/// The parts of a state.
pub(super) struct ParsedState {
    pub(super) head: Vec<u8>,
    pub(super) layout: Layout,
    /// An image per RAM block; `None` for a block without a size.
    pub(super) ram: Vec<Option<Image>>,
    pub(super) tail: Vec<u8>,
}

impl StoredState {
    /// Reads what is small, and opens the images.
    pub(super) fn open(
        reader: &SnapshotReader,
        memory: &ContentMemory,
    ) -> Result<StoredState, RestoreError> {
        match memory {
            ContentMemory::Parsed { blocks, .. } => {
                ParsedState::open(reader, *blocks).map(StoredState::Parsed)
            }
            ContentMemory::Stream { stream_bytes, .. } => {
                let name = MEMORY_STREAM.rsplit('/').next().unwrap_or_default();
                let entries = reader.list("/memory")?;
                match entries.iter().find(|entry| entry.name == name) {
                    Some(entry) if entry.size_bytes == *stream_bytes => Ok(StoredState::Stream {
                        stream_bytes: *stream_bytes,
                    }),
                    _ => Err(RestoreError::damaged(
                        MEMORY_STREAM,
                        "it is missing, or has not the length that the list says",
                    )),
                }
            }
        }
    }

    /// Bytes of memory, for progress.
    pub(super) fn total_bytes(&self) -> u64 {
        match self {
            StoredState::Parsed(state) => state
                .ram
                .iter()
                .flatten()
                .map(Image::size_bytes)
                .fold(0, u64::saturating_add),
            StoredState::Stream { stream_bytes } => *stream_bytes,
        }
    }
}

impl ParsedState {
    fn open(reader: &SnapshotReader, blocks: usize) -> Result<ParsedState, RestoreError> {
        let layout: Layout = read_json(reader, MEMORY_LAYOUT, LAYOUT_FORMAT)?;
        if layout.blocks.len() != blocks {
            let why = format!("it has {} RAM blocks, not {blocks}", layout.blocks.len());
            return Err(RestoreError::damaged(MEMORY_LAYOUT, why));
        }
        if !layout.page_size_bytes.is_power_of_two() {
            return Err(RestoreError::damaged(
                MEMORY_LAYOUT,
                "the size of a page is none",
            ));
        }
        let ram = layout
            .blocks
            .iter()
            .enumerate()
            .map(|(number, block)| open_block(reader, number, block.size_bytes));
        Ok(ParsedState {
            ram: ram.collect::<Result<_, _>>()?,
            head: reader.read_file(MEMORY_HEAD, MAX_HEAD_BYTES)?,
            tail: reader.read_file(MEMORY_TAIL, MAX_TAIL_BYTES)?,
            layout,
        })
    }
}

fn open_block(
    reader: &SnapshotReader,
    number: usize,
    size_bytes: u64,
) -> Result<Option<Image>, RestoreError> {
    if size_bytes == 0 {
        return Ok(None);
    }
    let dir = ram_dir(number);
    let image = reader.open_image(&dir)?;
    if image.size_bytes() == size_bytes {
        return Ok(Some(image));
    }
    let found = image.size_bytes();
    let why = format!("the layout says {size_bytes} bytes, the image has {found}");
    Err(RestoreError::damaged(dir, why))
}
