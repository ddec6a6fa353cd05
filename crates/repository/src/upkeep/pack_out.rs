//! Writes sealed blobs as they are into new packs, and new index files.
//!
//! Order on the store: packs first, then the index files that list them. A crash in between
//! leaves packs that nothing lists, which the next prune removes.

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index_file::IndexFile;
use crate::pack::{BlobKind, MAX_PACK_BLOBS, PackedBlob, append_header};
use crate::store::{FileName, Kind, Store};
use crate::unpacked;

use super::table::index_pack;

/// Length that a new pack is filled to.
const PACK_BYTES: usize = 24 << 20;
/// Blobs per index file.
const INDEX_FILE_BLOBS: usize = 50_000;

/// Packs being filled. One per kind of blob is in memory.
pub(crate) struct PackOut<'a> {
    store: &'a dyn Store,
    sealer: &'a Sealer,
    open: [(Vec<u8>, Vec<PackedBlob>); 2],
    index: IndexOut<'a>,
    /// Packs written so far.
    pub(crate) packs: Vec<Id>,
}

impl<'a> PackOut<'a> {
    pub(crate) fn new(store: &'a dyn Store, sealer: &'a Sealer) -> Self {
        Self {
            store,
            sealer,
            open: Default::default(),
            index: IndexOut::new(store, sealer),
            packs: Vec::new(),
        }
    }

    /// Takes a sealed blob over.
    pub(crate) fn push(&mut self, blob: &PackedBlob, sealed: &[u8]) -> Result<()> {
        let number = usize::from(blob.kind == BlobKind::Tree);
        let (buffer, blobs) = &self.open[number];
        if !blobs.is_empty()
            && (buffer.len() + sealed.len() > PACK_BYTES || blobs.len() >= MAX_PACK_BLOBS)
        {
            self.write(number)?;
        }
        let (buffer, blobs) = &mut self.open[number];
        blobs.push(PackedBlob {
            offset_bytes: buffer.len() as u32,
            ..*blob
        });
        buffer.extend_from_slice(sealed);
        Ok(())
    }

    fn write(&mut self, number: usize) -> Result<()> {
        let (mut buffer, blobs) = std::mem::take(&mut self.open[number]);
        if blobs.is_empty() {
            return Ok(());
        }
        append_header(&mut buffer, &blobs, self.sealer)?;
        let name = FileName::new(Kind::Pack, Id::of(&buffer));
        let written = self.store.write(&name, &buffer);
        written.map_err(|e| Error::store("write", name, e))?;
        self.packs.push(name.id);
        self.index.push(name.id, &blobs)
    }

    /// Writes what is open, then the index.
    pub(crate) fn finish(mut self) -> Result<Vec<Id>> {
        self.write(0)?;
        self.write(1)?;
        self.index.finish()?;
        Ok(self.packs)
    }
}

/// Index files being filled.
pub(crate) struct IndexOut<'a> {
    store: &'a dyn Store,
    sealer: &'a Sealer,
    file: IndexFile,
    blobs: usize,
    files: Vec<Id>,
}

impl<'a> IndexOut<'a> {
    pub(crate) fn new(store: &'a dyn Store, sealer: &'a Sealer) -> Self {
        Self {
            store,
            sealer,
            file: IndexFile::default(),
            blobs: 0,
            files: Vec::new(),
        }
    }

    /// Lists a pack.
    pub(crate) fn push(&mut self, pack: Id, blobs: &[PackedBlob]) -> Result<()> {
        self.file.packs.push(index_pack(pack, blobs));
        self.blobs += blobs.len();
        if self.blobs >= INDEX_FILE_BLOBS {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let file = std::mem::take(&mut self.file);
        self.blobs = 0;
        if file.packs.is_empty() {
            return Ok(());
        }
        let stored = unpacked::encode(self.sealer, &file)?;
        let name = FileName::new(Kind::Index, Id::of(&stored));
        let written = self.store.write(&name, &stored);
        written.map_err(|e| Error::store("write", name, e))?;
        self.files.push(name.id);
        Ok(())
    }

    /// Writes the last file; gives the ids of all.
    pub(crate) fn finish(mut self) -> Result<Vec<Id>> {
        self.write()?;
        Ok(self.files)
    }
}
