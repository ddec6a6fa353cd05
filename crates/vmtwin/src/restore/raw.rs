//! A disk as a raw, sparse file.

use std::fs::File;

use vmtwin_repository::{Image, SparseFile};

use super::error::RestoreError;
use super::progress::Watch;
use super::sparse_sink::SparseSink;
use super::target::Partial;

/// What a file system can leave out.
const BLOCK_BYTES: usize = 4096;

/// Writes `image` to the empty `file` and makes it durable; gives the bytes written.
pub(super) fn write(
    image: &Image,
    partial: &Partial,
    file: File,
    watch: Watch<'_>,
) -> Result<u64, RestoreError> {
    let size = file.set_len(image.size_bytes());
    size.map_err(RestoreError::file("set the size of", partial.path()))?;
    let file = SparseFile::new(file).map_err(RestoreError::file("open", partial.path()))?;
    let sink = SparseSink::new(file, BLOCK_BYTES);
    image
        .copy_to(&sink, &watch)
        .map_err(|error| sink_error(error, partial))?;
    let (written, file) = sink.finish();
    file.sync()
        .map_err(RestoreError::file("write", partial.path()))?;
    Ok(written)
}

/// A failed write belongs to the file, everything else to the repository.
pub(super) fn sink_error(error: vmtwin_repository::Error, partial: &Partial) -> RestoreError {
    match error {
        vmtwin_repository::Error::Sink { source, .. } => {
            RestoreError::file("write", partial.path())(source)
        }
        other => other.into(),
    }
}
