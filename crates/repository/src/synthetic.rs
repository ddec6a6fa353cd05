//! Indexes of blobs that are not there, for measurements: how long a repository of ten million
//! blobs takes to open does not depend on what is in its packs.

use crate::error::{Error, Result};
use crate::id::Id;
use crate::index_file::{IndexFile, IndexPack};
use crate::pack::{BlobKind, PackedBlob};
use crate::repository::Repository;
use crate::store::{FileName, Kind};
use crate::unpacked;

/// Blobs in a pack.
const PACK_BLOBS: u32 = 200;
/// Length of a sealed blob, bytes.
const BLOB_BYTES: u32 = 65_000;
/// Packs that one index file lists.
const FILE_PACKS: usize = 200;

/// Writes an index of `blobs` blobs that no pack holds. Gives the packs, for the caller to make files
/// of their lengths.
///
/// # Errors
/// Whatever the store says.
pub fn write_index(repository: &Repository, blobs: usize) -> Result<Vec<(Id, u64)>> {
    let count = blobs.div_ceil(PACK_BLOBS as usize);
    let ids: Vec<Id> = (0..count).map(|n| Id::of(&n.to_le_bytes())).collect();
    for packs in ids.chunks(FILE_PACKS) {
        let packs = packs.iter().map(pack).collect();
        let stored = unpacked::encode(repository.sealer(), &IndexFile { packs })?;
        let name = FileName::new(Kind::Index, Id::of(&stored));
        let written = repository.store().write(&name, &stored);
        written.map_err(|e| Error::store("write", name, e))?;
    }
    let size = u64::from(PACK_BLOBS) * u64::from(BLOB_BYTES);
    Ok(ids.into_iter().map(|id| (id, size)).collect())
}

fn pack(id: &Id) -> IndexPack {
    let blob = |number: u32| PackedBlob {
        kind: BlobKind::Data,
        id: Id::of(&[id.as_bytes().as_slice(), &number.to_le_bytes()].concat()),
        offset_bytes: number * BLOB_BYTES,
        sealed_bytes: BLOB_BYTES,
        compressed_from: Some(128 << 10),
    };
    IndexPack {
        id: *id,
        blobs: (0..PACK_BLOBS).map(|n| blob(n).into()).collect(),
    }
}
