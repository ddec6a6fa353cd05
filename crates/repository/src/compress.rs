//! zstd with a bound on what a frame may unfold to.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Longest raw blob we write or read: far above any grain, far below what harms a process.
pub(crate) const MAX_BLOB_BYTES: usize = 64 << 20;

/// The level that every JSON document (tree, index, snapshot) is compressed with.
const DOCUMENT_LEVEL: i32 = 3;

/// Compresses a JSON document.
pub(crate) fn compress_document(data: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(data, DOCUMENT_LEVEL)
}

/// Unfolds a frame of unknown length, up to `max_bytes`.
pub(crate) fn decompress_document(data: &[u8], max_bytes: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut plain = Vec::new();
    let limit = max_bytes as u64 + 1;
    zstd::stream::read::Decoder::with_buffer(data)?
        .take(limit)
        .read_to_end(&mut plain)?;
    if plain.len() > max_bytes {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(plain)
}

thread_local! {
    /// Making one costs as much as unfolding a small blob.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Unfolds a frame that must give exactly `raw_bytes` (which the caller has bounded).
pub(crate) fn decompress_exact(data: &[u8], raw_bytes: usize) -> std::io::Result<Vec<u8>> {
    let plain = DECOMPRESSOR.with_borrow_mut(|kept| {
        let mut decompressor = kept.take().map_or_else(Decompressor::new, Ok)?;
        let plain = decompressor.decompress(data, raw_bytes);
        *kept = Some(decompressor);
        plain
    })?;
    if plain.len() != raw_bytes {
        return Err(std::io::Error::other(
            "unfolds to another length than recorded",
        ));
    }
    Ok(plain)
}

/// A compressor of one lane, reused for all its blobs.
pub(crate) fn compressor(level: i32) -> std::io::Result<Compressor<'static>> {
    Compressor::new(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_bounded() {
        let bomb = compress_document(&vec![0; 10 << 20]).unwrap();
        assert!(bomb.len() < 10_000);
        assert!(decompress_document(&bomb, 1 << 20).is_err());
        assert_eq!(
            decompress_document(&bomb, 10 << 20).unwrap().len(),
            10 << 20
        );
        assert!(decompress_exact(&bomb, 1 << 20).is_err());
        assert!(decompress_exact(&bomb, 11 << 20).is_err());
    }
}
