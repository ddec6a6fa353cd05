//! What of a stream's shape must be remembered to make the stream again: small, serialisable,
//! stored beside head, RAM images and tail.

use serde::{Deserialize, Serialize};

/// Newest format of [`Layout`] that this program writes and reads.
pub(crate) const LAYOUT_FORMAT: u32 = 1;

/// One block of guest memory: main memory, video memory, a ROM, …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamBlock {
    /// QEMU's name of the block, unique in the guest, at most 255 bytes.
    pub id: String,
    /// Size, in bytes; whole pages.
    pub size_bytes: u64,
}

/// The shape of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Version of this structure, now 1.
    pub format: u32,
    /// Size of a page, in bytes.
    pub page_size_bytes: u32,
    /// Number of the RAM section in the stream.
    pub section_id: u32,
    /// Instance of the RAM section, 0.
    pub instance_id: u32,
    /// Version of the RAM section, 4.
    pub section_version: u32,
    /// Whether every section ends with a footer.
    pub footers: bool,
    /// Whether the command «switchover start» stood before the end of RAM.
    pub switchover_start: bool,
    /// Whether RAM ended with a section of its own: yes in a migration, no in a background
    /// snapshot.
    pub end_section: bool,
    /// All RAM blocks, in the order of the stream.
    pub blocks: Vec<RamBlock>,
}
