//! The JSON of an index file: packs and the blobs inside them.

use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::pack::{BlobKind, PackedBlob};

/// An index file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    pub(crate) packs: Vec<IndexPack>,
}

/// One pack of an index file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IndexPack {
    pub(crate) id: Id,
    pub(crate) blobs: Vec<IndexBlob>,
}

/// One blob of an index file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct IndexBlob {
    id: Id,
    #[serde(rename = "type")]
    kind: IndexKind,
    offset: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uncompressed_length: Option<u32>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IndexKind {
    Data,
    Tree,
}

impl From<PackedBlob> for IndexBlob {
    fn from(blob: PackedBlob) -> Self {
        Self {
            id: blob.id,
            kind: match blob.kind {
                BlobKind::Data => IndexKind::Data,
                BlobKind::Tree => IndexKind::Tree,
            },
            offset: blob.offset_bytes,
            length: blob.sealed_bytes,
            uncompressed_length: blob.compressed_from,
        }
    }
}

impl From<IndexBlob> for PackedBlob {
    fn from(blob: IndexBlob) -> Self {
        Self {
            id: blob.id,
            kind: match blob.kind {
                IndexKind::Data => BlobKind::Data,
                IndexKind::Tree => BlobKind::Tree,
            },
            offset_bytes: blob.offset,
            sealed_bytes: blob.length,
            compressed_from: blob.uncompressed_length.filter(|length| *length > 0),
        }
    }
}
