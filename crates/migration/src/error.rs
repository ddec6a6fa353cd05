//! What can go wrong: one enum for reading a stream, one for making one.

use std::io;

/// Why a stream could not be indexed. The caller may still store it as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes do not begin with the magic and version of a stream.
    #[error("not a QEMU migration stream of version 3")]
    NotAStream,
    /// The stream ends before it is complete.
    #[error("the stream is cut off: {what} is missing at byte {offset}")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where it was expected, in bytes from the start.
        offset: u64,
    },
    /// A valid stream, but of a kind that cannot be taken apart here.
    #[error("the stream uses {what} (at byte {offset}), which cannot be indexed")]
    Unsupported {
        /// The feature, in the words of QEMU.
        what: String,
        /// Where it was met, in bytes from the start.
        offset: u64,
    },
    /// The bytes contradict the format.
    #[error("the stream is damaged: {what} at byte {offset}")]
    Malformed {
        /// What contradicts.
        what: &'static str,
        /// Where it was met, in bytes from the start.
        offset: u64,
    },
    /// The stream is larger than the caller allows.
    #[error("{what} is {actual}, more than the limit of {limit}")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// What the stream says.
        actual: u64,
        /// What the caller allows.
        limit: u64,
    },
    /// The source of the bytes failed.
    #[error("cannot read the stream at byte {offset}")]
    Read {
        /// Where, in bytes from the start.
        offset: u64,
        /// What the source says.
        source: io::Error,
    },
}

/// Why a stream could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The stored head is not the head of a stream that can be indexed.
    #[error("the stored head of the stream is not usable")]
    Head(#[source] Error),
    /// The stored tail is not the end of a stream.
    #[error("the stored tail of the stream is not usable")]
    Tail(#[source] Error),
    /// The layout was stored by a newer program.
    #[error("the layout has format {found}, this program knows up to {known}")]
    LayoutFormat {
        /// Format found.
        found: u32,
        /// Newest format known.
        known: u32,
    },
    /// Head and layout do not describe the same guest.
    #[error("the layout does not belong to the stored head: {what}")]
    LayoutMismatch {
        /// What differs.
        what: &'static str,
    },
    /// Sources of RAM do not match the RAM blocks.
    #[error("RAM block {id} has {expected} bytes, the source has {actual}")]
    SourceSize {
        /// Name of the block.
        id: String,
        /// Bytes in the block.
        expected: u64,
        /// Bytes in the source; 0 if there is none.
        actual: u64,
    },
    /// Pages were given outside of a block, or not in whole pages.
    #[error("bytes {offset}+{len_bytes} are not whole pages of RAM block {id}")]
    Range {
        /// Name of the block, or its number if there is no such block.
        id: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len_bytes: u64,
    },
    /// A source of RAM failed.
    #[error("cannot read RAM block {id} at byte {offset}")]
    Read {
        /// Name of the block.
        id: String,
        /// Where, in bytes from the start of the block.
        offset: u64,
        /// What the source says.
        source: io::Error,
    },
    /// The receiver failed.
    #[error("cannot write the stream")]
    Write(#[source] io::Error),
}
