//! The image that one developed from, read group by group as a backup asks for it, so that its
//! length does not cost memory.

use std::sync::{Arc, Mutex, PoisonError};

use crate::blob_reader::BlobReader;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image::{Assembly, Chunk};
use crate::layout::in_order;
use crate::tree::NodeKind;

/// Groups that are kept: those that the lanes of a backup are at, and some more.
const KEPT_GROUPS: usize = 8;

/// The parent of an image, for [`ImageOptions::parent`](crate::ImageOptions::parent).
pub struct ParentImage {
    blobs: Arc<BlobReader>,
    path: String,
    /// Trees of the groups; none of an image whose segments lie in its own folder.
    groups: Vec<Id>,
    /// Length of every group but the last.
    group_bytes: u64,
    size_bytes: u64,
    /// The groups that were asked for last, latest at the end.
    kept: Mutex<Vec<(usize, Arc<[Chunk]>)>>,
}

impl std::fmt::Debug for ParentImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParentImage")
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl ParentImage {
    pub(crate) fn open(blobs: Arc<BlobReader>, path: &str, tree: &Id) -> Result<Self> {
        let nodes = blobs.read_tree(tree)?.nodes;
        let wrong = || Error::damaged(path, "it is not the folder of an image");
        if nodes.is_empty() || !in_order(nodes.iter().map(|node| node.name.as_str())) {
            return Err(wrong());
        }
        let nested = nodes[0].kind == NodeKind::Dir;
        let groups: Vec<Id> = match nested {
            false => vec![*tree],
            true => {
                let trees: Option<Vec<Id>> = nodes.iter().map(|node| node.subtree).collect();
                trees.ok_or_else(wrong)?
            }
        };
        let mut image = Self {
            blobs,
            path: path.to_owned(),
            groups,
            group_bytes: u64::MAX,
            size_bytes: u64::MAX,
            kept: Mutex::default(),
        };
        let length = |chunks: &[Chunk]| chunks.last().map_or(0, |chunk| chunk.end);
        let last = image.groups.len() - 1;
        image.group_bytes = length(&image.read_group(0)?);
        let before = u64::try_from(last).ok();
        let before = before.and_then(|count| count.checked_mul(image.group_bytes));
        let size = before.and_then(|size| size.checked_add(length(&image.read_group(last).ok()?)));
        image.size_bytes = size.ok_or_else(wrong)?;
        Ok(image)
    }

    /// Length of the image.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_group(&self, number: usize) -> Result<Arc<[Chunk]>> {
        Ok(Assembly::of_folder(&self.blobs, &self.path, &self.groups[number])?.into())
    }

    /// The chunks of a group, from memory or from the store; `None` where it cannot be read, or is
    /// not as long as it must be.
    fn group(&self, number: usize) -> Option<Arc<[Chunk]>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, chunks)) = kept().iter().find(|(at, _)| *at == number) {
            return Some(Arc::clone(chunks));
        }
        let chunks = self.read_group(number).ok()?;
        let start = number as u64 * self.group_bytes;
        let expected = self.group_bytes.min(self.size_bytes - start);
        if chunks.last().map_or(0, |chunk| chunk.end) != expected {
            return None;
        }
        let mut kept = kept();
        if kept.len() == KEPT_GROUPS {
            kept.remove(0);
        }
        kept.push((number, Arc::clone(&chunks)));
        Some(chunks)
    }

    /// The chunks that make up exactly this range, with their lengths, if there are such.
    pub(crate) fn chunks_of(&self, start: u64, length: u64) -> Option<Vec<(Chunk, u64)>> {
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.size_bytes)?;
        let number = usize::try_from(start / self.group_bytes.max(1)).ok()?;
        let base = number as u64 * self.group_bytes;
        let chunks = self.group(number)?;
        let (start, end) = (start - base, end - base);
        let first = chunks.partition_point(|chunk| chunk.end <= start);
        let mut at = match first {
            0 => 0,
            _ => chunks[first - 1].end,
        };
        if length == 0 || at != start {
            return None;
        }
        let mut found = Vec::new();
        for chunk in &chunks[first..] {
            found.push((*chunk, chunk.end - at));
            at = chunk.end;
            if at >= end {
                break;
            }
        }
        (at == end).then_some(found)
    }
}
