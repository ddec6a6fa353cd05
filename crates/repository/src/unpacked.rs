//! Sealed JSON files that are not in packs: configuration, locks, snapshots, index files.
//!
//! Stored form: `seal(0x02 ‖ zstd(json))`, or `seal(json)` as format version 1 and every
//! configuration have it. The name is the SHA-256 of the stored form.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::compress::{compress_document, decompress_document};
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::store::{FileName, Kind, Store};

/// Marks a compressed document.
const COMPRESSED: u8 = 2;

/// Longest stored and longest unfolded form of a kind, in bytes.
const fn limit_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Index => 256 << 20,
        Kind::Pack => 0,
        Kind::Snapshot => 16 << 20,
        Kind::Config | Kind::Key | Kind::Lock => 1 << 20,
    }
}

/// Seals a document; gives its stored form.
pub(crate) fn encode<T: Serialize>(sealer: &Sealer, document: &T) -> Result<Vec<u8>> {
    let system = |what| move |source| Error::System { what, source };
    let json = serde_json::to_vec(document)
        .map_err(|e| system("memory for a document")(io::Error::other(e)))?;
    let mut plain = vec![COMPRESSED];
    plain.extend(compress_document(&json).map_err(system("memory for compression"))?);
    sealer
        .seal(&plain)
        .map_err(|e| system("randomness")(io::Error::other(e)))
}

/// Opens the stored form of `file`.
pub(crate) fn decode<T: DeserializeOwned>(
    sealer: &Sealer,
    file: &FileName,
    mut stored: Vec<u8>,
) -> Result<T> {
    if file.kind != Kind::Config && Id::of(&stored) != file.id {
        return Err(Error::damaged(
            file,
            "its content does not have the hash it is named by",
        ));
    }
    let plain = sealer
        .open_in_place(&mut stored)
        .map_err(|e| Error::damaged(file, e))?;
    let unfolded;
    let json = match plain.first() {
        Some(b'{' | b'[') => plain,
        Some(&COMPRESSED) => {
            unfolded = decompress_document(&plain[1..], limit_bytes(file.kind))
                .map_err(|e| Error::damaged(file, format!("it does not unfold: {e}")))?;
            &unfolded
        }
        _ => return Err(Error::damaged(file, "neither JSON nor compressed JSON")),
    };
    serde_json::from_slice(json).map_err(|e| Error::damaged(file, e))
}

/// Reads the stored form of `file`; a file that is too long is damaged.
pub(crate) fn read_stored(store: &dyn Store, file: &FileName) -> Result<Vec<u8>> {
    let limit = limit_bytes(file.kind);
    store
        .read_full(file, limit as u64)
        .map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => {
                Error::damaged(file, format!("longer than the {limit} bytes allowed"))
            }
            _ => Error::store("read", file, source),
        })
}

/// Reads and opens `file`.
pub(crate) fn load<T: DeserializeOwned>(
    store: &dyn Store,
    sealer: &Sealer,
    file: &FileName,
) -> Result<T> {
    decode(sealer, file, read_stored(store, file)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn sealer() -> Sealer {
        Sealer::new(&[1; 32], &[2; 16], &[3; 16]).unwrap()
    }

    proptest! {
        #[test]
        fn authentic_but_hostile_documents_never_panic(
            plain in proptest::collection::vec(any::<u8>(), 0..300), compressed in any::<bool>()
        ) {
            let mut document = Vec::new();
            if compressed {
                document.push(COMPRESSED);
            }
            document.extend(plain);
            let stored = sealer().seal(&document).unwrap();
            let file = FileName::new(Kind::Snapshot, Id::of(&stored));
            let _ = decode::<Value>(&sealer(), &file, stored);
        }
    }

    #[test]
    fn round_trip_and_wrong_name() {
        let stored = encode(&sealer(), &[1, 2, 3]).unwrap();
        let file = FileName::new(Kind::Index, Id::of(&stored));
        let read: Vec<u32> = decode(&sealer(), &file, stored.clone()).unwrap();
        assert_eq!(read, [1, 2, 3]);
        let other = FileName::new(Kind::Index, Id::of(b"other"));
        assert!(matches!(
            decode::<Value>(&sealer(), &other, stored),
            Err(Error::Damaged { .. })
        ));
    }
}
