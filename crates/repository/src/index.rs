//! The index in memory: where each blob is. 29 bytes per blob, see [`crate::index_table`].
//!
//! The files are read by a few threads, those that [`crate::index_cache`] holds not again. An entry with impossible lengths makes its file damaged;
//! nothing of a damaged index file is used, because a backup must not build on it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index_cache::IndexCache;
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
    pub(crate) packs: Vec<Id>,
    /// Lengths of the packs, bytes, where nothing is trusted.
    sizes: Option<Vec<u32>>,
    /// What the cache holds.
    pub(crate) cached: Tables,
    /// What index files hold that the cache does not have.
    pub(crate) recent: Tables,
}

/// Blobs by their kind.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) data: BlobTable,
    pub(crate) trees: BlobTable,
}

/// What was loaded so far.
#[derive(Default)]
struct Loaded {
    packs: Vec<Id>,
    data: Rows,
    trees: Rows,
}

impl Index {
    /// Reads every index file that is not in the cache. With `trust_nothing`, blobs whose pack is
    /// missing or too short are not found, so that a backup stores them again instead of pointing
    /// at nothing.
    pub(crate) fn load(
        store: &dyn Store,
        sealer: &Sealer,
        cache: Option<&IndexCache>,
        trust_nothing: bool,
    ) -> Result<Self> {
        let mut files = list(store, Kind::Index)?;
        let known = cache.and_then(|cache| cache.read(sealer, &files));
        let known = known.unwrap_or_default();
        files.retain(|file| !known.files.contains(&file.id));
        let mut index = load_files(store, sealer, known.packs, &files)?;
        index.cached = known.tables;
        if let Some(cache) = cache
            && cache.wants(&index, files.len())
        {
            let ids = known.files.iter().copied();
            let ids: Vec<Id> = ids.chain(files.iter().map(|file| file.id)).collect();
            cache.write(sealer, &ids, &index);
        }
        if trust_nothing {
            index.sizes = Some(index.pack_sizes(store)?);
        }
        Ok(index)
    }

    /// The index that one file makes.
    pub(crate) fn of_file(name: &FileName, file: IndexFile) -> Result<Self> {
        check(name, &file)?;
        let loaded = Mutex::new(Loaded::default());
        Loaded::add_file(&loaded, file);
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
        let (cached, recent) = match kind {
            BlobKind::Data => (&self.cached.data, &self.recent.data),
            BlobKind::Tree => (&self.cached.trees, &self.recent.trees),
        };
        let id = *id;
        let places = cached.places(&id).chain(recent.places(&id));
        places.filter_map(move |row| self.place(kind, id, &row))
    }

    /// Lengths of all packs; those that are not there have none.
    fn pack_sizes(&self, store: &dyn Store) -> Result<Vec<u32>> {
        let listed = list(store, Kind::Pack)?;
        let sizes: HashMap<Id, u64> = listed.iter().map(|p| (p.id, p.size_bytes)).collect();
        let size = |id| sizes.get(id).copied().unwrap_or(0);
        let clamped = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(self.packs.iter().map(|id| clamped(size(id))).collect())
    }

    /// Whether the pack of a blob is there as far as it reaches.
    fn is_there(&self, row: &RowPlace) -> bool {
        let Some(sizes) = &self.sizes else {
            return true;
        };
        let size = sizes.get(row.pack as usize).copied().unwrap_or(0);
        let end = row.offset_bytes.checked_add(row.sealed_bytes);
        end.is_some_and(|end| end <= size)
    }

    fn place(&self, kind: BlobKind, id: Id, row: &RowPlace) -> Option<BlobPlace> {
        if !self.is_there(row) {
            return None;
        }
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
    fn add_file(loaded: &Mutex<Loaded>, file: IndexFile) {
        let lock = || loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let first = {
            let mut loaded = lock();
            let first = loaded.packs.len() as u32;
            loaded.packs.extend(file.packs.iter().map(|pack| pack.id));
            first
        };
        let (mut data, mut trees) = (Rows::default(), Rows::default());
        for (number, pack) in (first..).zip(file.packs) {
            for blob in pack.blobs {
                let blob = PackedBlob::from(blob);
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
            recent: Tables {
                data: BlobTable::of(self.data),
                trees: BlobTable::of(self.trees),
            },
            ..Index::default()
        }
    }
}

/// Reads index files by a few threads. Their packs come after those of the cache.
fn load_files(
    store: &dyn Store,
    sealer: &Sealer,
    packs: Vec<Id>,
    files: &[StoredFile],
) -> Result<Index> {
    let stored_bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
    let loaded = Mutex::new(Loaded {
        packs,
        data: Rows::with_room(stored_bytes / BLOB_STORED_BYTES),
        ..Loaded::default()
    });
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = FileName::new(Kind::Index, file.id);
            let part: IndexFile = unpacked::load(store, sealer, &name)?;
            check(&name, &part)?;
            Loaded::add_file(&loaded, part);
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
