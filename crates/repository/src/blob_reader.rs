//! Blobs on their way out: find, read, open, unfold, and check the hash.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::BlobCache;
use crate::compress::decompress_exact;
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::{BlobPlace, Index};
use crate::lock::LockGuard;
use crate::pack::BlobKind;
use crate::store::{FileName, Kind, Store};
use crate::tree::Tree;

/// Plain bytes that are kept for reads to come.
const CACHE_BYTES: usize = 64 << 20;
/// Blobs that can be on their way into the cache at once.
const TURNS: usize = 64;

/// Reads blobs; holds a shared lock, unless its maker does, so that nobody removes them.
pub(crate) struct BlobReader {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    index: Arc<Index>,
    cache: BlobCache,
    /// By the first byte of a blob's id: who wants a blob that another thread is just reading
    /// waits for it, and finds it in the cache.
    turns: [Mutex<()>; TURNS],
    _lock: Option<Arc<LockGuard>>,
}

impl BlobReader {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        sealer: Arc<Sealer>,
        index: Arc<Index>,
        lock: Option<Arc<LockGuard>>,
    ) -> Self {
        Self {
            store,
            sealer,
            index,
            cache: BlobCache::new(CACHE_BYTES),
            turns: [const { Mutex::new(()) }; TURNS],
            _lock: lock,
        }
    }

    /// The index it looks blobs up in.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Where a blob is.
    pub(crate) fn place(&self, kind: BlobKind, id: &Id) -> Result<BlobPlace> {
        self.index
            .find(kind, id)
            .ok_or_else(|| Error::damaged("index", format!("blob {id} is in no pack")))
    }

    /// Reads a part of a pack.
    pub(crate) fn read_pack(&self, pack: Id, offset_bytes: u32, buf: &mut [u8]) -> Result<()> {
        let name = FileName::new(Kind::Pack, pack);
        let read = self.store.read_range(&name, u64::from(offset_bytes), buf);
        read.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::damaged(name, "it is shorter than the index says")
            }
            io::ErrorKind::NotFound => Error::damaged(name, "it is missing"),
            _ => Error::store("read", name, source),
        })
    }

    /// Opens a sealed blob in place, unfolds it, and checks its hash.
    pub(crate) fn decode(&self, id: &Id, place: &BlobPlace, sealed: &mut [u8]) -> Result<Vec<u8>> {
        decode(&self.sealer, id, place, sealed)
    }

    /// Reads a blob, not through the cache. Of several places the first that serves is taken.
    pub(crate) fn read(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        let mut result = self
            .place(kind, id)
            .and_then(|place| self.read_place(id, &place));
        for place in self.index.places(kind, id).skip(1) {
            if result.is_ok() {
                break;
            }
            result = self.read_place(id, &place);
        }
        result
    }

    fn read_place(&self, id: &Id, place: &BlobPlace) -> Result<Vec<u8>> {
        let mut sealed = vec![0; place.sealed_bytes as usize];
        self.read_pack(place.pack, place.offset_bytes, &mut sealed)?;
        self.decode(id, place, &mut sealed)
    }

    /// Reads a data blob through the cache.
    pub(crate) fn read_cached(&self, id: &Id) -> Result<Arc<[u8]>> {
        if let Some(blob) = self.cache.get(id) {
            return Ok(blob);
        }
        let turn = &self.turns[usize::from(id.as_bytes()[0]) % TURNS];
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = self.cache.get(id) {
            return Ok(blob);
        }
        let blob: Arc<[u8]> = self.read(BlobKind::Data, id)?.into();
        self.cache.put(*id, Arc::clone(&blob));
        Ok(blob)
    }

    /// Reads a tree; names that lead out of their folder make it damaged.
    pub(crate) fn read_tree(&self, id: &Id) -> Result<Tree> {
        parse_tree(id, &self.read(BlobKind::Tree, id)?)
    }
}

/// Opens a sealed blob in place, unfolds it, and checks its hash.
pub(crate) fn decode(
    sealer: &Sealer,
    id: &Id,
    place: &BlobPlace,
    sealed: &mut [u8],
) -> Result<Vec<u8>> {
    let damaged = |reason: String| {
        let name = FileName::new(Kind::Pack, place.pack);
        Error::damaged(name, format!("blob {id}: {reason}"))
    };
    let body = sealer
        .open_in_place(sealed)
        .map_err(|e| damaged(e.to_string()))?;
    let plain = if place.compressed {
        decompress_exact(body, place.raw_bytes as usize).map_err(|e| damaged(e.to_string()))?
    } else {
        body.to_vec()
    };
    if Id::of(&plain) != *id {
        return Err(damaged(
            "it does not have the hash it is named by".to_owned(),
        ));
    }
    Ok(plain)
}

/// Reads the plain bytes of a tree; names that lead out of their folder make it damaged.
pub(crate) fn parse_tree(id: &Id, bytes: &[u8]) -> Result<Tree> {
    let file = format!("tree {id}");
    let tree: Tree = serde_json::from_slice(bytes).map_err(|e| Error::damaged(&file, e))?;
    match tree.nodes.iter().find(|node| !node.name_is_safe()) {
        Some(node) => Err(Error::damaged(
            &file,
            format!("unsafe name {:?}", node.name),
        )),
        None => Ok(tree),
    }
}
