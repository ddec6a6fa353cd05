//! Bounds on what a stream may claim, so that a damaged or hostile one costs little.

/// Bounds that [`crate::StreamIndex::parse`] keeps to. Exceeding one is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Sum of all RAM blocks, in bytes. Default 4 TiB. The index needs up to 8 bytes of memory
    /// for each 4 KiB page with content that is in the stream, and 16 for each 2 MiB claimed.
    pub max_ram_bytes: u64,
    /// Everything up to the first page, in bytes. Default 1 MiB.
    pub max_head_bytes: u64,
    /// Everything after the last page, in bytes. Default 1 GiB.
    pub max_tail_bytes: u64,
    /// Size of a page, in bytes, where the stream does not say. Default 4096 (x86, s390x; Arm
    /// and others say it in their streams).
    pub page_size_bytes: u32,
}

/// More RAM blocks than any guest has.
pub(crate) const MAX_BLOCKS: usize = 256;

/// No RAM block is larger than this, in bytes: 64 TiB.
pub(crate) const MAX_BLOCK_BYTES: u64 = 64 << 40;

/// Longest name of a machine type in the configuration, in bytes.
pub(crate) const MAX_MACHINE_NAME: u32 = 1024;

/// Most capabilities that a configuration may name.
pub(crate) const MAX_CAPABILITIES: u32 = 256;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_ram_bytes: 4 << 40,
            max_head_bytes: 1 << 20,
            max_tail_bytes: 1 << 30,
            page_size_bytes: 4096,
        }
    }
}

impl Limits {
    /// The defaults with another bound on the sum of all RAM blocks, in bytes.
    #[must_use]
    pub fn with_max_ram_bytes(mut self, max_ram_bytes: u64) -> Self {
        self.max_ram_bytes = max_ram_bytes;
        self
    }

    /// The defaults with another size of page, in bytes (a power of two).
    #[must_use]
    pub fn with_page_size_bytes(mut self, page_size_bytes: u32) -> Self {
        self.page_size_bytes = page_size_bytes;
        self
    }
}
