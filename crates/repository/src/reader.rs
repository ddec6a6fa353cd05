//! Reading a snapshot: folders, small files, and images.

use std::io::Write;
use std::sync::Arc;

use crate::blob_reader::BlobReader;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image::Image;
use crate::pack::BlobKind;
use crate::parent::ParentImage;
use crate::snapshot::Snapshot;
use crate::tree::{Node, NodeKind};
use crate::tree_builder::split;

/// What an entry of a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// Something that only other tools write: a link, a device.
    Other,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name; never a path.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Length of a file; zero for everything else.
    pub size_bytes: u64,
}

/// Reads one snapshot. Holds a shared lock of the repository.
pub struct SnapshotReader {
    blobs: Arc<BlobReader>,
    root: Id,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl SnapshotReader {
    pub(crate) fn new(blobs: Arc<BlobReader>, snapshot: &Snapshot) -> Self {
        Self {
            blobs,
            root: snapshot.tree,
        }
    }

    /// A reader of another snapshot of the same repository, sharing lock, index and cache. The
    /// snapshot must have been there when this reader was made.
    #[must_use]
    pub fn with_snapshot(&self, snapshot: &Snapshot) -> Self {
        Self::new(Arc::clone(&self.blobs), snapshot)
    }

    /// Lists a folder, by name; `/` is the root.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`], whatever the store says.
    pub fn list(&self, dir: &str) -> Result<Vec<Entry>> {
        let entry = |node: Node| Entry {
            kind: match node.kind {
                NodeKind::File => EntryKind::File,
                NodeKind::Dir => EntryKind::Folder,
                NodeKind::Other => EntryKind::Other,
            },
            size_bytes: node.size,
            name: node.name,
        };
        let tree = self.blobs.read_tree(&self.folder(dir)?)?;
        Ok(tree.nodes.into_iter().map(entry).collect())
    }

    /// Reads a whole file of at most `max_bytes`.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NotFound`], [`Error::Damaged`], whatever the store says.
    pub fn read_file(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let node = self.file(path)?;
        if node.size > max_bytes {
            return Err(Error::TooLarge {
                path: path.to_owned(),
                size_bytes: node.size,
                limit_bytes: max_bytes,
            });
        }
        let mut data = Vec::new();
        self.copy_node(path, &node, &mut data)?;
        Ok(data)
    }

    /// Copies a file out, chunk by chunk; gives its length.
    ///
    /// # Errors
    /// [`Error::Sink`] from `writer`, [`Error::NotFound`], [`Error::Damaged`], the store's.
    pub fn copy_file(&self, path: &str, writer: &mut dyn Write) -> Result<u64> {
        let node = self.file(path)?;
        self.copy_node(path, &node, writer)
    }

    /// Opens the image whose segments are in a folder.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] also for a folder that is no image.
    pub fn open_image(&self, dir: &str) -> Result<Image> {
        Image::open(Arc::clone(&self.blobs), dir, &self.folder(dir)?)
    }

    /// Opens an image to build another one on it.
    ///
    /// # Errors
    /// As [`Self::open_image`].
    pub fn open_parent(&self, dir: &str) -> Result<ParentImage> {
        ParentImage::open(Arc::clone(&self.blobs), dir, &self.folder(dir)?)
    }

    fn copy_node(&self, path: &str, node: &Node, writer: &mut dyn Write) -> Result<u64> {
        let wrong = || Error::damaged(path, "its chunks do not add up to its length");
        let content = node.content.as_deref().unwrap_or_default();
        // Added up before anything is read, so that a lie costs nothing.
        let mut total = 0u64;
        for id in content {
            let place = self.blobs.place(BlobKind::Data, id)?;
            total = total
                .checked_add(u64::from(place.raw_bytes))
                .ok_or_else(wrong)?;
        }
        if total != node.size {
            return Err(wrong());
        }
        let mut offset_bytes = 0;
        for id in content {
            let blob = self.blobs.read(BlobKind::Data, id)?;
            writer.write_all(&blob).map_err(|source| Error::Sink {
                offset_bytes,
                source,
            })?;
            offset_bytes += blob.len() as u64;
        }
        Ok(total)
    }

    fn file(&self, path: &str) -> Result<Node> {
        match self.node(path)? {
            Some(node) if node.kind == NodeKind::File => Ok(node),
            _ => Err(not_found("file", path)),
        }
    }

    fn folder(&self, path: &str) -> Result<Id> {
        match self.node(path)? {
            None => Ok(self.root),
            Some(node) if node.kind == NodeKind::Dir => node
                .subtree
                .ok_or_else(|| Error::damaged(path, "a folder without a tree")),
            Some(_) => Err(not_found("folder", path)),
        }
    }

    /// The node at `path`; `None` for the root. The depth is bounded by the path.
    fn node(&self, path: &str) -> Result<Option<Node>> {
        if path == "/" {
            return Ok(None);
        }
        let mut tree = self.root;
        let mut found = None;
        for name in split(path)? {
            if let Some(folder) = found.take() {
                let folder: Node = folder;
                tree = folder.subtree.ok_or_else(|| not_found("path", path))?;
            }
            let nodes = self.blobs.read_tree(&tree)?.nodes;
            let node = nodes.into_iter().find(|node| node.name == name);
            found = Some(node.ok_or_else(|| not_found("path", path))?);
        }
        Ok(found)
    }
}

fn not_found(what: &str, path: &str) -> Error {
    Error::NotFound {
        what: format!("{what} {path:?} in the snapshot"),
    }
}
