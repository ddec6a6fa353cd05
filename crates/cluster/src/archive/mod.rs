//! The archive: one zip file with a manifest, an XML file per node and one file of the database.
//!
//! ```text
//!   manifest.json         first; says what follows, with sizes and hashes
//!   database.jsonl
//!   nodes/NAME.xml        in the order of their names
//!   secrets/NAME.age      the same, of those whose secrets are here; sealed, so no two are the same
//!   secrets.age           what opens them, sealed with a passphrase
//! ```
//!
//! Any unzip reads it. It is written in one way only, so that the same parts give the same bytes:
//! order, times (those of zip's beginning, 1980), modes, level of compression. What is read must
//! have that shape, which leaves hostile files little: no comments, nothing before or after, no
//! zip64, no links, no encryption, no name but the above, no name twice, no more bytes than the
//! manifest says, and all of it bounded before it is read.

mod partial;
mod read;
mod write;

pub use read::{Archive, EntryReader};
pub use write::{PartWriter, Parts, Zipped};

/// The first entry.
const MANIFEST: &str = "manifest.json";
/// Most that a manifest may have, bytes: some 40,000 nodes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Most entries of an archive.
const MAX_ENTRIES: u16 = 50_000;
/// Most that an archive may have, bytes: beyond that zip needs its extension of 64 bits.
const MAX_ARCHIVE_BYTES: u64 = u32::MAX as u64;
/// Most that all entries together may have, unpacked, bytes.
const MAX_TOTAL_BYTES: u64 = 16 << 30;
