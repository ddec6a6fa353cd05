//! The index in memory: where each blob is. 29 bytes per blob, see [`crate::index_table`].
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
use crate::index_table::{BlobTable, RowPlace, Rows};
use crate::pack::{BlobKind, PackedBlob};
use crate::store::{FileName, Kind, Store, StoredFile};
use crate::unpacked;

/// What a blob takes at least in an index file: an id does not get shorter by compression. Room is
/// made once, since a list that grows is copied and takes its memory twice.
const BLOB_STORED_BYTES: u64 = 36;
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

/// All blobs of a repository.
#[derive(Default)]
pub(crate) struct Index {
    packs: Vec<Id>,
    data: BlobTable,
    trees: BlobTable,
}

/// What was loaded so far.
#[derive(Default)]
struct Loaded {
    packs: Vec<Id>,
    data: Rows,
    trees: Rows,
}

impl Index {
    /// Reads every index file. With `trust_nothing`, entries whose pack is missing or too short
    /// are left out, so that a backup stores their blobs again instead of pointing at nothing.
    pub(crate) fn load(store: &dyn Store, sealer: &Sealer, trust_nothing: bool) -> Result<Self> {
        let files = list(store, Kind::Index)?;
        let stored_bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
        let loaded = Mutex::new(Loaded {
            data: Rows::with_room(stored_bytes / BLOB_STORED_BYTES),
            ..Loaded::default()
        });
        let next = AtomicUsize::new(0);
        let sizes = trust_nothing.then(|| pack_sizes(store)).transpose()?;
        let work = || -> Result<()> {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let name = FileName::new(Kind::Index, file.id);
                let part: IndexFile = unpacked::load(store, sealer, &name)?;
                check(&name, &part)?;
                Loaded::add_file(&loaded, part, sizes.as_ref());
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
            .into_index())
    }

    /// The index that one file makes.
    pub(crate) fn of_file(name: &FileName, file: IndexFile) -> Result<Self> {
        check(name, &file)?;
        let loaded = Mutex::new(Loaded::default());
        Loaded::add_file(&loaded, file, None);
        let loaded = loaded.into_inner();
        Ok(loaded.unwrap_or_else(PoisonError::into_inner).into_index())
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
        let table = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        let id = *id;
        let places = table.places(&id);
        places.filter_map(move |row| self.place(kind, id, &row))
    }

    fn place(&self, kind: BlobKind, id: Id, row: &RowPlace) -> Option<BlobPlace> {
        let compressed_from = (row.compressed_from > 0).then_some(row.compressed_from);
        let blob = PackedBlob {
            kind,
            id,
            offset_bytes: row.offset_bytes,
            sealed_bytes: row.sealed_bytes,
            compressed_from,
        };
        Some(BlobPlace {
            pack: *self.packs.get(row.pack as usize)?,
            offset_bytes: row.offset_bytes,
            sealed_bytes: row.sealed_bytes,
            raw_bytes: blob.raw_bytes()?,
            compressed: compressed_from.is_some(),
        })
    }
}

impl Loaded {
    /// Adds what a file lists. Only the numbers of its packs are taken under the lock.
    fn add_file(loaded: &Mutex<Loaded>, file: IndexFile, sizes: Option<&HashMap<Id, u64>>) {
        let lock = || loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let first = {
            let mut loaded = lock();
            let first = loaded.packs.len() as u32;
            loaded.packs.extend(file.packs.iter().map(|pack| pack.id));
            first
        };
        let (mut data, mut trees) = (Rows::default(), Rows::default());
        for (number, pack) in (first..).zip(file.packs) {
            let size = match sizes {
                None => u64::MAX,
                Some(sizes) => sizes.get(&pack.id).copied().unwrap_or(0),
            };
            for blob in pack.blobs {
                let blob = PackedBlob::from(blob);
                if u64::from(blob.offset_bytes) + u64::from(blob.sealed_bytes) > size {
                    continue;
                }
                let rows = match blob.kind {
                    BlobKind::Data => &mut data,
                    BlobKind::Tree => &mut trees,
                };
                let place = RowPlace {
                    pack: number,
                    offset_bytes: blob.offset_bytes,
                    sealed_bytes: blob.sealed_bytes,
                    compressed_from: blob.compressed_from.unwrap_or(0),
                };
                rows.push(&blob.id, place);
            }
        }
        let mut loaded = lock();
        loaded.data.append(data);
        loaded.trees.append(trees);
    }

    fn into_index(self) -> Index {
        Index {
            packs: self.packs,
            data: BlobTable::of(self.data),
            trees: BlobTable::of(self.trees),
        }
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

fn list(store: &dyn Store, kind: Kind) -> Result<Vec<StoredFile>> {
    let files = store.list(kind);
    files.map_err(|e| Error::store("list", kind.folder(), e))
}

fn pack_sizes(store: &dyn Store) -> Result<HashMap<Id, u64>> {
    let packs = store
        .list(Kind::Pack)
        .map_err(|e| Error::store("list", "data", e))?;
    Ok(packs.into_iter().map(|p| (p.id, p.size_bytes)).collect())
}
