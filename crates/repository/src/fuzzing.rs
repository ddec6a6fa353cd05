//! The parsers alone, over bytes instead of a store. For fuzzing only; no stable interface.
//!
//! Without the key nobody makes an object that opens, but one that holds the key may be mistaken, or
//! another program: so bytes are given to the parsers sealed as well as bare.

use crate::blob_reader::{decode, parse_tree};
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::{ID_BYTES, Id};
use crate::index::{BlobPlace, Index};
use crate::index_file::{IndexBlob, IndexFile};
use crate::pack::{PackedBlob, append_header, parse_pack};
use crate::snapshot::SnapshotFile;
use crate::store::{FileName, Kind};
use crate::tree::Tree;
use crate::unpacked;

/// Takes all but the first byte as the object that the first byte chooses.
///
/// # Errors
/// Nearly always.
///
/// # Panics
/// What was read is not the same after it was written and read again.
pub fn object(bytes: &[u8]) -> Result<()> {
    let Some((kind, bytes)) = bytes.split_first() else {
        return Ok(());
    };
    let sealer = sealer()?;
    match kind % 6 {
        0 => parse_pack(bytes, &sealer).map_err(pack_error).map(drop),
        1 => sealed_pack(&sealer, bytes),
        2 => index(&sealer, bytes),
        3 => tree(bytes),
        4 => snapshot(&sealer, bytes),
        _ => blob(&sealer, bytes),
    }
}

fn sealer() -> Result<Sealer> {
    Sealer::new(&[1; 32], &[2; 16], &[3; 16]).map_err(|e| Error::damaged("key", e))
}

fn seal(sealer: &Sealer, plain: &[u8]) -> Result<Vec<u8>> {
    sealer.seal(plain).map_err(|e| Error::damaged("object", e))
}

fn pack_error(reason: &'static str) -> Error {
    Error::damaged("pack", reason)
}

/// The bytes are a header; the blobs before it are as long as it says, if that is not too long.
fn sealed_pack(sealer: &Sealer, header: &[u8]) -> Result<()> {
    let sealed = seal(sealer, header)?;
    let trailer = [&sealed[..], &(sealed.len() as u32).to_le_bytes()].concat();
    for length in [0, 32, 64, 1000] {
        let pack = [&vec![0; length][..], &trailer].concat();
        let Ok(blobs) = parse_pack(&pack, sealer) else {
            continue;
        };
        let mut again = vec![0; length];
        append_header(&mut again, &blobs, sealer)?;
        assert_eq!(parse_pack(&again, sealer), Ok(blobs));
    }
    Ok(())
}

/// An index file. What it lists is found, with lengths that can be allocated.
fn index(sealer: &Sealer, plain: &[u8]) -> Result<()> {
    let stored = seal(sealer, plain)?;
    let name = FileName::new(Kind::Index, Id::of(&stored));
    let file: IndexFile = unpacked::decode(sealer, &name, stored)?;
    let listed: Vec<IndexBlob> = file.packs.iter().flat_map(|p| p.blobs.clone()).collect();
    let index = Index::of_file(&name, file)?;
    for blob in listed {
        let blob = PackedBlob::from(blob);
        assert!(index.find(blob.kind, &blob.id).is_some());
    }
    Ok(())
}

fn tree(plain: &[u8]) -> Result<()> {
    let tree = parse_tree(&Id::of(plain), plain)?;
    let bytes = tree.to_bytes().map_err(|e| Error::damaged("tree", e))?;
    let again: Tree = serde_json::from_slice(&bytes).map_err(|e| Error::damaged("tree", e))?;
    assert!(again.nodes == tree.nodes);
    Ok(())
}

fn snapshot(sealer: &Sealer, plain: &[u8]) -> Result<()> {
    let stored = seal(sealer, plain)?;
    let name = FileName::new(Kind::Snapshot, Id::of(&stored));
    let file: SnapshotFile = unpacked::decode(sealer, &name, stored)?;
    let snapshot = file.into_snapshot(name.id);
    let _ = (snapshot.tag("vm"), snapshot.tag("consistency"));
    Ok(())
}

/// A sealed blob; the first bytes say what the index has of it.
fn blob(sealer: &Sealer, bytes: &[u8]) -> Result<()> {
    let Some(([compressed, low, high], plain)) = bytes.split_first_chunk() else {
        return Ok(());
    };
    let mut sealed = seal(sealer, plain)?;
    let place = BlobPlace {
        pack: Id::from_bytes([0; ID_BYTES]),
        offset_bytes: 0,
        sealed_bytes: sealed.len() as u32,
        raw_bytes: u32::from(u16::from_le_bytes([*low, *high])),
        compressed: compressed & 1 == 1,
    };
    let read = decode(sealer, &Id::of(plain), &place, &mut sealed)?;
    assert!(read == plain);
    Ok(())
}
