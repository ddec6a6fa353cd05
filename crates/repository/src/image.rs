//! An image in a snapshot: random reads, and which parts are zero without reading them.

use std::io;
use std::sync::Arc;

use crate::blob_reader::BlobReader;
use crate::copy;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::{Extent, ExtentKind, ImageSink, ImageSource, Progress};
use crate::layout::in_order;
use crate::pack::BlobKind;
use crate::stats::CopyStats;
use crate::tree::{Node, NodeKind};
use crate::zero::ZeroIds;

/// One chunk of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) id: Id,
    /// Where in the image it ends.
    pub(crate) end: u64,
    /// Whether it is known to be zero.
    pub(crate) zero: bool,
}

/// An image; cheap to read from many threads. 48 bytes of memory per chunk.
pub struct Image {
    blobs: Arc<BlobReader>,
    chunks: Vec<Chunk>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

/// Collects chunks of segments in their order.
pub(crate) struct Assembly<'a> {
    blobs: &'a BlobReader,
    zeros: ZeroIds,
    chunks: Vec<Chunk>,
}

impl<'a> Assembly<'a> {
    /// The chunks of the segments in a folder.
    pub(crate) fn of_folder(blobs: &'a BlobReader, path: &str, tree: &Id) -> Result<Vec<Chunk>> {
        let mut assembly = Assembly {
            blobs,
            zeros: ZeroIds::default(),
            chunks: Vec::new(),
        };
        assembly.add_folder(path, tree, true)?;
        Ok(assembly.chunks)
    }

    /// Adds a folder's segments; sub-folders (one level of them) are groups of segments.
    fn add_folder(&mut self, path: &str, tree: &Id, groups_allowed: bool) -> Result<()> {
        let nodes = self.blobs.read_tree(tree)?.nodes;
        if nodes.is_empty() || !in_order(nodes.iter().map(|node| node.name.as_str())) {
            return Err(Error::damaged(path, "it is not the folder of an image"));
        }
        for node in nodes {
            match (node.kind, node.subtree) {
                (NodeKind::File, _) => self.add_segment(path, &node)?,
                (NodeKind::Dir, Some(subtree)) if groups_allowed => {
                    self.add_folder(path, &subtree, false)?;
                }
                _ => return Err(Error::damaged(path, "it is not the folder of an image")),
            }
        }
        Ok(())
    }

    fn add_segment(&mut self, path: &str, node: &Node) -> Result<()> {
        let wrong = || {
            let reason = "its chunks do not add up to its length";
            Error::damaged(format!("{path}/{}", node.name), reason)
        };
        let start = self.chunks.last().map_or(0, |chunk| chunk.end);
        let mut end = start;
        for id in node.content.as_deref().unwrap_or_default() {
            let raw_bytes = self.blobs.place(BlobKind::Data, id)?.raw_bytes;
            if raw_bytes == 0 {
                return Err(wrong());
            }
            end = end.checked_add(u64::from(raw_bytes)).ok_or_else(wrong)?;
            let zero = self.zeros.contains(raw_bytes, id);
            self.chunks.push(Chunk { id: *id, end, zero });
        }
        if end - start == node.size {
            Ok(())
        } else {
            Err(wrong())
        }
    }
}

impl Image {
    pub(crate) fn open(blobs: Arc<BlobReader>, path: &str, tree: &Id) -> Result<Self> {
        let chunks = Assembly::of_folder(&blobs, path, tree)?;
        Ok(Self { blobs, chunks })
    }

    /// Length of the image.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.chunks.last().map_or(0, |chunk| chunk.end)
    }

    /// The extent at `offset_bytes`: zero or data, without reading either. At or beyond the end
    /// of the image its length is zero.
    #[must_use]
    pub fn extent_at(&self, offset_bytes: u64) -> Extent {
        let mut chunks = self.chunks[self.position(offset_bytes)..].iter();
        let Some(first) = chunks.next() else {
            return Extent {
                kind: ExtentKind::Hole,
                len: 0,
            };
        };
        let same = chunks.take_while(|chunk| chunk.zero == first.zero);
        let end = same.last().unwrap_or(first).end;
        Extent {
            kind: if first.zero {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            },
            len: end - offset_bytes,
        }
    }

    /// Fills `buf`. Every blob read is checked against its hash.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] beyond the end; [`Error::Damaged`]; whatever the store says.
    pub fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset_bytes.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(Error::InvalidOption {
                reason: format!(
                    "a read of {} at {offset_bytes} is beyond the end",
                    buf.len()
                ),
            });
        }
        let mut at = offset_bytes;
        let mut rest = buf;
        let mut position = self.position(at);
        while !rest.is_empty() {
            let chunk = self.chunks[position];
            let length = (chunk.end - at).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(length);
            if chunk.zero {
                part.fill(0);
            } else {
                let blob = self.blobs.read_cached(&chunk.id)?;
                let from = (at - self.start(position)) as usize;
                part.copy_from_slice(&blob[from..from + length]);
            }
            at += length as u64;
            rest = after;
            position += 1;
        }
        Ok(())
    }

    /// Writes all that is not zero to `sink`, from several threads, in the order of the packs.
    /// Every blob is checked against its hash before it is written.
    ///
    /// # Errors
    /// [`Error::Sink`], [`Error::Cancelled`], [`Error::Damaged`], whatever the store says.
    pub fn copy_to(&self, sink: &dyn ImageSink, progress: &dyn Progress) -> Result<CopyStats> {
        copy::copy_image(&self.blobs, &self.chunks, sink, progress)
    }

    /// Number of the chunk that holds a byte.
    fn position(&self, offset_bytes: u64) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.end <= offset_bytes)
    }

    fn start(&self, position: usize) -> u64 {
        match position {
            0 => 0,
            _ => self.chunks[position - 1].end,
        }
    }
}

/// So that an image of a snapshot can be backed up again, changed or not.
impl ImageSource for Image {
    fn size_bytes(&self) -> u64 {
        Self::size_bytes(self)
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<Extent> {
        Ok(Self::extent_at(self, offset_bytes))
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        Self::read_at(self, offset_bytes, buf).map_err(io::Error::other)
    }
}
