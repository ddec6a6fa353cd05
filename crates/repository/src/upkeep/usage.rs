//! Usage: what snapshots take, alone and together.
//!
//! Every tree is read once, so that a thousand snapshots that share most of theirs are quick.

use std::collections::{HashMap, HashSet};

use crate::blob_reader::BlobReader;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::Progress;
use crate::lock::LockMode;
use crate::pack::BlobKind;
use crate::repository::Repository;
use crate::snapshot::Snapshot;

use super::{BlobKey, Table, check_cancel};

/// What one snapshot takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Bytes of its files and images, holes included.
    pub logical_bytes: u64,
    /// Plain bytes of the blobs that no older snapshot of its group has.
    pub added_bytes: u64,
    /// What those take in the repository.
    pub added_stored_bytes: u64,
}

/// What a repository takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By group, in the order of the groups' names; in a group oldest first.
    pub groups: Vec<(String, Vec<SnapshotUsage>)>,
    /// Packs on the store.
    pub packs: usize,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Index files.
    pub index_files: usize,
    /// Blobs that some snapshot needs.
    pub used_blobs: u64,
    /// What those take, each counted once.
    pub used_stored_bytes: u64,
    /// Plain bytes of those.
    pub used_bytes: u64,
    /// What nothing needs: unused and doubled blobs, and packs that no index lists.
    pub unused_bytes: u64,
}

impl Repository {
    /// Measures; snapshots are grouped by `group`, and those without one are counted for the
    /// whole alone.
    ///
    /// # Errors
    /// [`Error::Damaged`]: check then; [`Error::Locked`], [`Error::Cancelled`], the store's.
    pub fn usage(
        &self,
        group: &dyn Fn(&Snapshot) -> Option<String>,
        progress: &dyn Progress,
    ) -> Result<Usage> {
        let lock = self.lock(LockMode::Shared)?;
        let list = self.snapshots()?;
        if let Some(damaged) = list.damaged.into_iter().next() {
            return Err(damaged.error);
        }
        let mut table = Table::load(self.store(), self.sealer())?;
        table.require_whole()?;
        let index = table.index(|_| true)?;
        let reader = BlobReader::new(
            self.store_arc(),
            self.sealer_arc(),
            index.into(),
            Some(lock.into()),
        );
        let mut trees = Trees::new(&reader, progress);
        let mut groups: HashMap<String, (HashSet<BlobKey>, Vec<SnapshotUsage>)> = HashMap::new();
        let mut all = HashSet::new();
        let mut usage = Usage::default();
        for snapshot in list.snapshots {
            check_cancel(progress)?;
            let logical_bytes = trees.logical(snapshot.tree, 0)?;
            let (added, stored) = trees.add(snapshot.tree, &mut all)?;
            usage.used_bytes += added;
            usage.used_stored_bytes += stored;
            let Some(name) = group(&snapshot) else {
                continue;
            };
            let (seen, list) = groups.entry(name).or_default();
            let (added_bytes, added_stored_bytes) = trees.add(snapshot.tree, seen)?;
            list.push(SnapshotUsage {
                snapshot,
                logical_bytes,
                added_bytes,
                added_stored_bytes,
            });
        }
        let groups = groups.into_iter().map(|(name, (_, list))| (name, list));
        usage.groups = groups.collect();
        usage.groups.sort_by(|a, b| a.0.cmp(&b.0));
        usage.packs = table.sizes.len();
        usage.pack_bytes = table.sizes.values().sum();
        usage.index_files = table.files.len();
        usage.used_blobs = all.len() as u64;
        let sealed = |blobs: &Vec<crate::pack::PackedBlob>| -> u64 {
            blobs.iter().map(|b| u64::from(b.sealed_bytes)).sum()
        };
        let listed: u64 = table.packs.values().map(sealed).sum();
        let orphans = table.orphans();
        let orphans: u64 = orphans.iter().map(|id| table.sizes[id]).sum();
        usage.unused_bytes = listed.saturating_sub(usage.used_stored_bytes) + orphans;
        Ok(usage)
    }
}

/// What of a tree matters here.
struct Folder {
    subtrees: Vec<Id>,
    content: Vec<Id>,
    file_bytes: u64,
}

/// Trees that were read, and their logical lengths.
struct Trees<'a> {
    reader: &'a BlobReader,
    progress: &'a dyn Progress,
    logical: HashMap<Id, u64>,
}

/// Deepest folder that is walked.
const MAX_DEPTH: usize = 200;

impl<'a> Trees<'a> {
    fn new(reader: &'a BlobReader, progress: &'a dyn Progress) -> Self {
        Self {
            reader,
            progress,
            logical: HashMap::new(),
        }
    }

    fn read(&self, id: &Id) -> Result<Folder> {
        let mut folder = Folder {
            subtrees: Vec::new(),
            content: Vec::new(),
            file_bytes: 0,
        };
        for node in self.reader.read_tree(id)?.nodes {
            folder.subtrees.extend(node.subtree);
            folder.content.extend(node.content.into_iter().flatten());
            folder.file_bytes = folder.file_bytes.saturating_add(node.size);
        }
        Ok(folder)
    }

    /// Bytes of all files below a folder.
    fn logical(&mut self, id: Id, depth: usize) -> Result<u64> {
        if let Some(bytes) = self.logical.get(&id) {
            return Ok(*bytes);
        }
        if depth > MAX_DEPTH {
            return Err(Error::damaged(format!("tree {id}"), "it is too deep"));
        }
        let folder = self.read(&id)?;
        let mut bytes = folder.file_bytes;
        for subtree in folder.subtrees {
            bytes = bytes.saturating_add(self.logical(subtree, depth + 1)?);
        }
        self.logical.insert(id, bytes);
        Ok(bytes)
    }

    /// Adds what a tree needs to `seen`; gives plain and stored bytes of what was not in it.
    fn add(&self, root: Id, seen: &mut HashSet<BlobKey>) -> Result<(u64, u64)> {
        let (mut plain, mut stored) = (0, 0);
        let mut count = |kind, id: &Id| -> Result<()> {
            let place = self.reader.place(kind, id)?;
            plain += u64::from(place.raw_bytes);
            stored += u64::from(place.sealed_bytes);
            Ok(())
        };
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            if !seen.insert((BlobKind::Tree, id)) {
                continue;
            }
            check_cancel(self.progress)?;
            count(BlobKind::Tree, &id)?;
            let folder = self.read(&id)?;
            open.extend(folder.subtrees);
            for id in folder.content {
                if seen.insert((BlobKind::Data, id)) {
                    count(BlobKind::Data, &id)?;
                }
            }
        }
        Ok((plain, stored))
    }
}
