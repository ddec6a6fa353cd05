//! Upkeep of a repository: retention, prune, check, repair, copy, usage, object locks.
//!
//! ```text
//!   snapshots ─► trees ─► used blobs ┐
//!   index files ─► Table ────────────┼─► plan ─► prune, check, repair, usage
//!   listing of packs ─► sizes ───────┘
//! ```
//! Whoever looks at a repository while backups run lists snapshots first, then reads the index,
//! then lists packs: the reverse of the order they are written in, so that nothing seems to be
//! missing that is only new.

pub(crate) mod check;
mod object_lock;
pub(crate) mod pack_out;
pub(crate) mod prune;
pub(crate) mod repair;
pub(crate) mod retention;
mod table;
pub(crate) mod transfer;
pub(crate) mod usage;

use std::collections::HashSet;

pub(crate) use table::Table;

use crate::blob_reader::BlobReader;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::{Progress, ProgressDelta};
use crate::pack::BlobKind;

/// A blob's name: the same bytes may be data here and a tree there.
pub(crate) type BlobKey = (BlobKind, Id);

/// Adds every blob that `root` needs to `used`; a tree that is in it already is not read again.
pub(crate) fn add_used(
    reader: &BlobReader,
    root: Id,
    used: &mut HashSet<BlobKey>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        if !used.insert((BlobKind::Tree, id)) {
            continue;
        }
        check_cancel(progress)?;
        for node in reader.read_tree(&id)?.nodes {
            open.extend(node.subtree);
            let content = node.content.into_iter().flatten();
            used.extend(content.map(|id| (BlobKind::Data, id)));
        }
    }
    Ok(())
}

/// Fails once the caller cancelled.
pub(crate) fn check_cancel(progress: &dyn Progress) -> Result<()> {
    match progress.cancelled() {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

/// Reports bytes that were worked through.
pub(crate) fn advance(progress: &dyn Progress, bytes: u64) {
    progress.advance(ProgressDelta {
        bytes_processed: bytes,
        bytes_read: bytes,
        bytes_new: 0,
    });
}
