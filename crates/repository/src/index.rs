//! The index in memory: where each blob is. 56 bytes per blob, sorted by id.
//!
//! The files are read by a few threads. An entry with impossible lengths makes its file damaged;
//! nothing of a damaged index file is used, because a backup must not build on it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index_file::IndexFile;
use crate::pack::{BlobKind, PackedBlob};
use crate::store::{FileName, Kind, Store};
use crate::unpacked;

/// Threads that read index files.
const LOADERS: usize = 4;

/// Where a blob is and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobPlace {
    pub(crate) pack: Id,
    pub(crate) offset_bytes: u32,
    pub(crate) sealed_bytes: u32,
    pub(crate) raw_bytes: u32,
    pub(crate) compressed: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    id: Id,
    pack: u32,
    offset_bytes: u32,
    sealed_bytes: u32,
    /// Zero: not compressed. (An empty blob is never compressed.)
    compressed_from: u32,
}

/// All blobs of a repository.
#[derive(Default)]
pub(crate) struct Index {
    packs: Vec<Id>,
    data: Vec<Entry>,
    trees: Vec<Entry>,
}

impl Index {
    /// Reads every index file. With `trust_nothing`, entries whose pack is missing or too short
    /// are left out, so that a backup stores their blobs again instead of pointing at nothing.
    pub(crate) fn load(store: &dyn Store, sealer: &Sealer, trust_nothing: bool) -> Result<Self> {
        let files = list(store, Kind::Index)?;
        let loaded = Mutex::new(Self::default());
        let next = AtomicUsize::new(0);
        let sizes = trust_nothing.then(|| pack_sizes(store)).transpose()?;
        let work = || -> Result<()> {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let name = FileName::new(Kind::Index, *file);
                let part: IndexFile = unpacked::load(store, sealer, &name)?;
                check(&name, &part)?;
                let mut index = loaded.lock().unwrap_or_else(PoisonError::into_inner);
                index.add_file(part, sizes.as_ref());
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let count = LOADERS.min(files.len());
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(Error::damaged("index", "its reader panicked")))
            })
        })?;
        Ok(loaded
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .sorted())
    }

    /// The index that one file makes.
    pub(crate) fn of_file(name: &FileName, file: IndexFile) -> Result<Self> {
        check(name, &file)?;
        let mut index = Self::default();
        index.add_file(file, None);
        Ok(index.sorted())
    }

    fn sorted(mut self) -> Self {
        self.data.sort_unstable_by_key(|e| e.id);
        self.trees.sort_unstable_by_key(|e| e.id);
        self
    }

    fn add_file(&mut self, file: IndexFile, sizes: Option<&HashMap<Id, u64>>) {
        for pack in file.packs {
            let size = match sizes {
                None => u64::MAX,
                Some(sizes) => sizes.get(&pack.id).copied().unwrap_or(0),
            };
            let number = self.packs.len() as u32;
            self.packs.push(pack.id);
            for blob in pack.blobs {
                let blob = PackedBlob::from(blob);
                if u64::from(blob.offset_bytes) + u64::from(blob.sealed_bytes) > size {
                    continue;
                }
                let entries = match blob.kind {
                    BlobKind::Data => &mut self.data,
                    BlobKind::Tree => &mut self.trees,
                };
                entries.push(Entry {
                    id: blob.id,
                    pack: number,
                    offset_bytes: blob.offset_bytes,
                    sealed_bytes: blob.sealed_bytes,
                    compressed_from: blob.compressed_from.unwrap_or(0),
                });
            }
        }
    }

    /// Looks a blob up.
    pub(crate) fn find(&self, kind: BlobKind, id: &Id) -> Option<BlobPlace> {
        self.places(kind, id).next()
    }

    /// All places of a blob. There are several after backups that ran at once, or after one that
    /// healed what was missing.
    pub(crate) fn places(
        &self,
        kind: BlobKind,
        id: &Id,
    ) -> impl Iterator<Item = BlobPlace> + use<'_> {
        let entries = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        let id = *id;
        let first = entries.partition_point(|entry| entry.id < id);
        let same = entries[first..]
            .iter()
            .take_while(move |entry| entry.id == id);
        same.filter_map(move |entry| self.place(kind, entry))
    }

    fn place(&self, kind: BlobKind, entry: &Entry) -> Option<BlobPlace> {
        let compressed_from = (entry.compressed_from > 0).then_some(entry.compressed_from);
        let blob = PackedBlob {
            kind,
            id: entry.id,
            offset_bytes: entry.offset_bytes,
            sealed_bytes: entry.sealed_bytes,
            compressed_from,
        };
        Some(BlobPlace {
            pack: *self.packs.get(entry.pack as usize)?,
            offset_bytes: entry.offset_bytes,
            sealed_bytes: entry.sealed_bytes,
            raw_bytes: blob.raw_bytes()?,
            compressed: compressed_from.is_some(),
        })
    }
}

/// Refuses impossible lengths.
pub(crate) fn check(name: &FileName, file: &IndexFile) -> Result<()> {
    for blob in file.packs.iter().flat_map(|pack| &pack.blobs) {
        let blob = PackedBlob::from(*blob);
        let ends = blob.offset_bytes.checked_add(blob.sealed_bytes);
        if blob.raw_bytes().is_none() || ends.is_none() {
            return Err(Error::damaged(
                name,
                format!("impossible lengths of blob {}", blob.id),
            ));
        }
    }
    Ok(())
}

fn list(store: &dyn Store, kind: Kind) -> Result<Vec<Id>> {
    let files = store
        .list(kind)
        .map_err(|e| Error::store("list", kind.folder(), e))?;
    Ok(files.into_iter().map(|f| f.id).collect())
}

fn pack_sizes(store: &dyn Store) -> Result<HashMap<Id, u64>> {
    let packs = store
        .list(Kind::Pack)
        .map_err(|e| Error::store("list", "data", e))?;
    Ok(packs.into_iter().map(|p| (p.id, p.size_bytes)).collect())
}
