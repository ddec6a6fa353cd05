//! Copy of snapshots to another repository, blob by blob under the other's keys.
//!
//! A snapshot is written when all its blobs are there and indexed, so a copy that is interrupted
//! goes on where it was: what is there is not read again. One blob is in memory at a time, beside
//! the pack buffers of the target.

use std::collections::HashSet;

use crate::backup::Backup;
use crate::blob_reader::BlobReader;
use crate::blob_writer::Scratch;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::Progress;
use crate::lock::LockMode;
use crate::options::IngestOptions;
use crate::pack::BlobKind;
use crate::repository::Repository;
use crate::snapshot::{Snapshot, SnapshotFile};
use crate::store::{FileName, Kind};
use crate::unpacked;

use super::{advance, check_cancel};

/// What became of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its id here.
    pub id: String,
    /// Its id in the other repository.
    pub copy: String,
    /// It was there already.
    pub skipped: bool,
    /// Plain bytes that the other repository did not have.
    pub bytes_new: u64,
    /// What they take there.
    pub bytes_stored: u64,
}

impl Repository {
    /// Copies snapshots to `target`, in the order given, passing over those that are there.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for the same repository; [`Error::Damaged`], [`Error::Locked`],
    /// [`Error::Cancelled`], whatever the stores say. Snapshots copied before stay.
    pub fn copy_to(
        &self,
        target: &Repository,
        snapshots: &[Snapshot],
        options: &IngestOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Copied>> {
        if self.id() == target.id() {
            return Err(Error::InvalidOption {
                reason: "both repositories are the same".to_owned(),
            });
        }
        let lock = self.lock(LockMode::Shared)?;
        let index = self.load_index(false)?;
        let reader = BlobReader::new(
            self.store_arc(),
            self.sealer_arc(),
            index.into(),
            Some(lock.into()),
        );
        let there = target.snapshots()?.snapshots;
        let mut run = Run {
            reader: &reader,
            backup: target.start_backup(options)?,
            scratch: Scratch::new(options.zstd_level)?,
            done: HashSet::new(),
            progress,
        };
        let mut copied = Vec::new();
        for snapshot in snapshots {
            copied.push(match there.iter().find(|copy| is_copy(copy, snapshot)) {
                Some(copy) => Copied {
                    id: snapshot.id.clone(),
                    copy: copy.id.clone(),
                    skipped: true,
                    bytes_new: 0,
                    bytes_stored: 0,
                },
                None => run.snapshot(self, snapshot)?,
            });
        }
        Ok(copied)
    }
}

/// Whether `copy` is `snapshot`: made from it, or both from the same one. The tree must agree,
/// because a repository may have lost and got back a snapshot of the same origin.
fn is_copy(copy: &Snapshot, snapshot: &Snapshot) -> bool {
    let origin = snapshot.original.as_ref().unwrap_or(&snapshot.id);
    let other = copy.original.as_ref().unwrap_or(&copy.id);
    origin == other && copy.tree == snapshot.tree
}

struct Run<'a> {
    reader: &'a BlobReader,
    backup: Backup,
    scratch: Scratch,
    done: HashSet<Id>,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    fn snapshot(&mut self, source: &Repository, snapshot: &Snapshot) -> Result<Copied> {
        let mut copied = Copied {
            id: snapshot.id.clone(),
            copy: String::new(),
            skipped: false,
            bytes_new: 0,
            bytes_stored: 0,
        };
        let mut open = vec![snapshot.tree];
        while let Some(id) = open.pop() {
            if !self.done.insert(id) {
                continue;
            }
            for node in self.reader.read_tree(&id)?.nodes {
                open.extend(node.subtree);
                for id in node.content.iter().flatten() {
                    self.blob(BlobKind::Data, id, &mut copied)?;
                }
            }
            self.blob(BlobKind::Tree, &id, &mut copied)?;
        }
        let id: Id = snapshot.id.parse().unwrap_or_default();
        let name = FileName::new(Kind::Snapshot, id);
        let file: SnapshotFile = unpacked::load(source.store(), source.sealer(), &name)?;
        copied.copy = self.backup.write_copy(&file.copy_of(id))?.to_hex();
        Ok(copied)
    }

    fn blob(&mut self, kind: BlobKind, id: &Id, copied: &mut Copied) -> Result<()> {
        check_cancel(self.progress)?;
        let writer = self.backup.writer();
        if writer.has(kind, id) {
            return Ok(());
        }
        let plain = self.reader.read(kind, id)?;
        let stored = writer.store(kind, *id, &plain, &mut self.scratch)?;
        if stored.new {
            copied.bytes_new += plain.len() as u64;
            copied.bytes_stored += stored.stored_bytes;
        }
        advance(self.progress, plain.len() as u64);
        Ok(())
    }
}
