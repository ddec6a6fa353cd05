//! What a backup or a restore moved, in numbers.

use crate::blob_writer::Stored;

/// What storing one file or image did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStats {
    /// Length of the file or image.
    pub bytes_total: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes that are zero: holes, and what was read and found zero.
    pub bytes_zero: u64,
    /// Plain bytes that the repository did not have.
    pub bytes_new: u64,
    /// What those take in the repository, compressed and sealed.
    pub bytes_stored: u64,
    /// Chunks of the file or image.
    pub chunks: u64,
    /// Chunks that the repository did not have.
    pub chunks_new: u64,
}

/// What storing one image did.
pub type ImageStats = FileStats;

impl FileStats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes_total += other.bytes_total;
        self.bytes_read += other.bytes_read;
        self.bytes_zero += other.bytes_zero;
        self.bytes_new += other.bytes_new;
        self.bytes_stored += other.bytes_stored;
        self.chunks += other.chunks;
        self.chunks_new += other.chunks_new;
    }

    /// Counts a chunk of `raw_bytes` that was stored or found.
    pub(crate) fn count(&mut self, raw_bytes: usize, stored: Stored) {
        self.chunks += 1;
        if stored.new {
            self.chunks_new += 1;
            self.bytes_new += raw_bytes as u64;
            self.bytes_stored += stored.stored_bytes;
        }
    }
}

/// What copying an image out did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Length of the image.
    pub bytes_total: u64,
    /// Bytes written to the target; the rest is zero and was not written.
    pub bytes_written: u64,
    /// Bytes read from the store.
    pub bytes_fetched: u64,
}
