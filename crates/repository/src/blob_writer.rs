//! Blobs on their way in: dedupe, compress, seal, pack.
//!
//! Called by many threads at once. A blob counts as stored once a thread has claimed its id; if
//! that thread fails, the whole backup fails, so nothing ever points at a blob that is missing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use zstd::bulk::Compressor;

use crate::compress::{MAX_BLOB_BYTES, compressor};
use crate::control::Control;
use crate::crypto::{NONCE_BYTES, SEAL_BYTES, Sealer, TAG_BYTES};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Index;
use crate::pack::{BlobKind, MAX_PACK_BLOBS, PackedBlob};
use crate::upload::{FullPack, Uploads};

/// Shards of the set of new ids, so that threads seldom wait for one another.
const SHARDS: usize = 16;

/// What storing one blob did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) new: bool,
    /// Sealed length of a new blob.
    pub(crate) stored_bytes: u64,
}

/// One thread's compressor and output buffer.
pub(crate) struct Scratch {
    compressor: Compressor<'static>,
    out: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new(level: i32) -> Result<Self> {
        let compressor = compressor(level).map_err(|source| Error::System {
            what: "a compressor",
            source,
        })?;
        Ok(Self {
            compressor,
            out: Vec::new(),
        })
    }

    /// Compresses and seals into the output buffer. Data that does not get shorter by at least
    /// one part in 32 is kept as it is, so that reading it back costs nothing.
    fn prepare(
        &mut self,
        sealer: &Sealer,
        kind: BlobKind,
        plain: &[u8],
    ) -> Result<(&[u8], Option<u32>)> {
        let system = |source| Error::System {
            what: "compression or randomness",
            source,
        };
        let room = zstd::zstd_safe::compress_bound(plain.len());
        if self.out.len() < room + SEAL_BYTES {
            self.out.resize(room + SEAL_BYTES, 0);
        }
        let body = &mut self.out[NONCE_BYTES..NONCE_BYTES + room];
        let short = self
            .compressor
            .compress_to_buffer(plain, body)
            .map_err(system)?;
        let keep = kind == BlobKind::Data && short > plain.len() - plain.len() / 32;
        let length = if keep { plain.len() } else { short };
        if keep {
            body[..length].copy_from_slice(plain);
        }
        let sealed = &mut self.out[..NONCE_BYTES + length + TAG_BYTES];
        sealer
            .seal_in_place(sealed)
            .map_err(|e| system(std::io::Error::other(e)))?;
        Ok((sealed, (!keep).then_some(plain.len() as u32)))
    }
}

/// The way into the repository for all blobs of one backup.
pub(crate) struct BlobWriter {
    index: Arc<Index>,
    new: [Mutex<HashSet<(BlobKind, Id)>>; SHARDS],
    data: Mutex<Option<FullPack>>,
    trees: Mutex<Option<FullPack>>,
    pack_bytes: usize,
    sealer: Arc<Sealer>,
    control: Arc<Control>,
    pub(crate) uploads: Uploads,
}

impl BlobWriter {
    pub(crate) fn new(
        index: Arc<Index>,
        pack_bytes: usize,
        sealer: Arc<Sealer>,
        control: Arc<Control>,
        uploads: Uploads,
    ) -> Self {
        Self {
            index,
            new: Default::default(),
            data: Mutex::new(None),
            trees: Mutex::new(None),
            pack_bytes,
            sealer,
            control,
            uploads,
        }
    }

    /// Whether the blob is in the repository or on its way.
    pub(crate) fn has(&self, kind: BlobKind, id: &Id) -> bool {
        self.index.find(kind, id).is_some() || self.shard(id).contains(&(kind, *id))
    }

    fn shard(&self, id: &Id) -> std::sync::MutexGuard<'_, HashSet<(BlobKind, Id)>> {
        let number = usize::from(id.as_bytes()[0]) % SHARDS;
        self.new[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a blob unless it is there.
    pub(crate) fn store(
        &self,
        kind: BlobKind,
        id: Id,
        plain: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Stored> {
        if plain.len() > MAX_BLOB_BYTES {
            return Err(Error::InvalidOption {
                reason: format!("a folder or chunk of {} bytes is too long", plain.len()),
            });
        }
        if self.index.find(kind, &id).is_some() || !self.shard(&id).insert((kind, id)) {
            return Ok(Stored::default());
        }
        let (sealed, compressed_from) = scratch.prepare(&self.sealer, kind, plain)?;
        self.pack(kind, id, sealed, compressed_from)?;
        Ok(Stored {
            new: true,
            stored_bytes: sealed.len() as u64,
        })
    }

    fn pack(
        &self,
        kind: BlobKind,
        id: Id,
        sealed: &[u8],
        compressed_from: Option<u32>,
    ) -> Result<()> {
        let open = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |pack: &mut FullPack| {
            pack.blobs.len() >= MAX_PACK_BLOBS || pack.buffer.len() + sealed.len() > self.pack_bytes
        };
        if let Some(full) = open.take_if(is_full) {
            self.uploads.upload_pack(full)?;
        }
        if open.is_none() {
            *open = Some(FullPack {
                buffer: self.uploads.pool().lend(&self.control)?,
                blobs: Vec::new(),
            });
        }
        let Some(pack) = open.as_mut() else {
            return Err(Error::AlreadyFailed);
        };
        pack.blobs.push(PackedBlob {
            kind,
            id,
            offset_bytes: pack.buffer.len() as u32,
            sealed_bytes: sealed.len() as u32,
            compressed_from,
        });
        pack.buffer.extend_from_slice(sealed);
        Ok(())
    }

    /// Uploads the open packs and waits until everything is written and indexed.
    pub(crate) fn flush(&self) -> Result<()> {
        for open in [&self.data, &self.trees] {
            let pack = open.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(pack) = pack {
                self.uploads.upload_pack(pack)?;
            }
        }
        self.uploads.wait_for_packs()?;
        self.uploads.write_index()
    }
}
