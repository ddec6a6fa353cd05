//! Packs: blobs one after the other, a sealed header that lists them, and its length.
//!
//! A header entry is `kind (1) ‖ sealed length (4) ‖ [raw length (4)] ‖ id (32)`, little-endian;
//! the raw length is there for compressed blobs. The name of a pack is the hash of the file.

use crate::compress::MAX_BLOB_BYTES;
use crate::crypto::{SEAL_BYTES, Sealer};
use crate::error::{Error, Result};
use crate::id::{ID_BYTES, Id};

/// The two kinds of blobs; a pack holds only one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum BlobKind {
    Data,
    Tree,
}

/// One blob of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedBlob {
    pub(crate) kind: BlobKind,
    pub(crate) id: Id,
    /// Where the sealed blob begins in the pack.
    pub(crate) offset_bytes: u32,
    /// Length of the sealed blob.
    pub(crate) sealed_bytes: u32,
    /// Length of the plain blob if it is compressed.
    pub(crate) compressed_from: Option<u32>,
}

impl PackedBlob {
    /// Length of the plain blob; `None` where the recorded lengths make no sense.
    pub(crate) fn raw_bytes(&self) -> Option<u32> {
        let stored = self.sealed_bytes.checked_sub(SEAL_BYTES as u32)?;
        let raw = self.compressed_from.unwrap_or(stored);
        let sensible = raw as usize <= MAX_BLOB_BYTES && stored as usize <= 2 * MAX_BLOB_BYTES;
        sensible.then_some(raw)
    }
}

/// Most blobs in one pack, so that its header stays far below restic's 16 MiB.
pub(crate) const MAX_PACK_BLOBS: usize = 65_536;
/// Longest sealed header that is read.
const MAX_HEADER_BYTES: usize = 16 << 20;
const PLAIN_ENTRY_BYTES: usize = 1 + 4 + ID_BYTES;
const COMPRESSED_ENTRY_BYTES: usize = PLAIN_ENTRY_BYTES + 4;

/// What a full pack adds to its blobs: header and length.
pub(crate) const fn trailer_bytes(blobs: usize) -> usize {
    blobs * COMPRESSED_ENTRY_BYTES + SEAL_BYTES + 4
}

/// Length of header and length field of the pack of these blobs.
pub(crate) fn header_bytes(blobs: &[PackedBlob]) -> usize {
    let compressed = blobs.iter().filter(|b| b.compressed_from.is_some()).count();
    blobs.len() * PLAIN_ENTRY_BYTES + compressed * 4 + SEAL_BYTES + 4
}

/// Appends the sealed header and its length to the blobs in `pack`.
pub(crate) fn append_header(
    pack: &mut Vec<u8>,
    blobs: &[PackedBlob],
    sealer: &Sealer,
) -> Result<()> {
    let mut header = Vec::with_capacity(blobs.len() * COMPRESSED_ENTRY_BYTES);
    for blob in blobs {
        let kind = match blob.kind {
            BlobKind::Data => 0,
            BlobKind::Tree => 1,
        };
        header.push(if blob.compressed_from.is_some() {
            kind + 2
        } else {
            kind
        });
        header.extend(blob.sealed_bytes.to_le_bytes());
        if let Some(raw) = blob.compressed_from {
            header.extend(raw.to_le_bytes());
        }
        header.extend(blob.id.as_bytes());
    }
    let sealed = sealer.seal(&header).map_err(|e| Error::System {
        what: "randomness",
        source: std::io::Error::other(e),
    })?;
    pack.extend_from_slice(&sealed);
    pack.extend((sealed.len() as u32).to_le_bytes());
    Ok(())
}

/// Reads the list of blobs at the end of a whole pack.
pub(crate) fn parse_pack(pack: &[u8], sealer: &Sealer) -> Result<Vec<PackedBlob>, &'static str> {
    let Some((rest, length)) = pack.split_last_chunk::<4>() else {
        return Err("shorter than a header length");
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_HEADER_BYTES || length > rest.len() {
        return Err("the header is longer than the pack");
    }
    let (blobs, sealed) = rest.split_at(rest.len() - length);
    let mut sealed = sealed.to_vec();
    let header = sealer
        .open_in_place(&mut sealed)
        .map_err(|_| "the header does not open")?;
    parse_header(header, blobs.len())
}

fn parse_header(mut header: &[u8], blobs_bytes: usize) -> Result<Vec<PackedBlob>, &'static str> {
    let mut blobs = Vec::new();
    let mut offset = 0u32;
    while let Some((&kind, rest)) = header.split_first() {
        let (kind, compressed) = match kind {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            _ => return Err("unknown kind of blob"),
        };
        let (sealed_bytes, rest) = take_u32(rest)?;
        let (compressed_from, rest) = match compressed {
            true => take_u32(rest).map(|(raw, rest)| (Some(raw), rest))?,
            false => (None, rest),
        };
        let (id, rest) = rest
            .split_first_chunk::<ID_BYTES>()
            .ok_or("the header is cut")?;
        let blob = PackedBlob {
            kind,
            id: Id::from_bytes(*id),
            offset_bytes: offset,
            sealed_bytes,
            compressed_from,
        };
        blob.raw_bytes().ok_or("a blob has an impossible length")?;
        offset = offset
            .checked_add(sealed_bytes)
            .ok_or("the blobs are too long")?;
        blobs.push(blob);
        header = rest;
    }
    match offset as usize == blobs_bytes {
        true => Ok(blobs),
        false => Err("the lengths of the blobs do not add up"),
    }
}

fn take_u32(bytes: &[u8]) -> Result<(u32, &[u8]), &'static str> {
    let (head, rest) = bytes.split_first_chunk::<4>().ok_or("the header is cut")?;
    Ok((u32::from_le_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    fn blobs() -> impl Strategy<Value = Vec<PackedBlob>> {
        let one = (any::<[u8; 32]>(), 32u32..100, any::<bool>(), any::<bool>());
        proptest::collection::vec(one, 0..20).prop_map(|list| {
            let mut offset_bytes = 0;
            let mut blobs = Vec::new();
            for (id, sealed_bytes, tree, compressed) in list {
                blobs.push(PackedBlob {
                    kind: if tree { BlobKind::Tree } else { BlobKind::Data },
                    id: Id::from_bytes(id),
                    offset_bytes,
                    sealed_bytes,
                    compressed_from: compressed.then_some(1000),
                });
                offset_bytes += sealed_bytes;
            }
            blobs
        })
    }

    proptest! {
        #[test]
        fn header_round_trip(blobs in blobs(), cut in any::<usize>()) {
            let length = blobs.iter().map(|b| b.sealed_bytes as usize).sum();
            let mut pack = vec![7; length];
            append_header(&mut pack, &blobs, &sealer()).unwrap();
            prop_assert!(pack.len() <= length + trailer_bytes(blobs.len()));
            prop_assert_eq!(parse_pack(&pack, &sealer()), Ok(blobs));
            let cut = cut % pack.len();
            prop_assert!(parse_pack(&pack[..cut], &sealer()).is_err());
        }

        #[test]
        fn hostile_headers_never_panic(
            header in proptest::collection::vec(any::<u8>(), 0..300), length in any::<usize>()
        ) {
            let _ = parse_header(&header, length);
            let _ = parse_pack(&header, &sealer());
        }
    }
}
