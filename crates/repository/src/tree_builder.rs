//! The folders of a backup while it runs: paths put in one by one, trees written at its end.

use std::collections::BTreeMap;

use crate::blob_writer::{BlobWriter, Scratch};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::pack::BlobKind;
use crate::tree::{Node, Tree, name_is_safe};

/// Deepest path.
const MAX_DEPTH: usize = 64;
/// Longest name of a file or folder, as file systems have it.
const MAX_NAME_BYTES: usize = 255;

/// A folder in the making.
#[derive(Default)]
pub(crate) struct TreeBuilder {
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    /// A file, or a folder whose tree is stored already.
    Node(Node),
    Folder(TreeBuilder),
}

/// Splits an absolute path into names that are safe to restore.
pub(crate) fn split(path: &str) -> Result<Vec<&str>> {
    let refuse = |reason| Error::InvalidPath {
        path: path.to_owned(),
        reason,
    };
    let rest = path
        .strip_prefix('/')
        .ok_or_else(|| refuse("it must begin with a slash"))?;
    let names: Vec<&str> = rest.split('/').collect();
    if names.len() > MAX_DEPTH {
        return Err(refuse("it is too deep"));
    }
    if names
        .iter()
        .any(|name| !name_is_safe(name) || name.len() > MAX_NAME_BYTES)
    {
        return Err(refuse("a name in it is empty, too long, or no plain name"));
    }
    Ok(names)
}

impl TreeBuilder {
    /// Puts a node at `path`; `make` gets its name.
    pub(crate) fn insert(&mut self, path: &str, make: impl FnOnce(&str) -> Node) -> Result<()> {
        let taken = || Error::InvalidPath {
            path: path.to_owned(),
            reason: "the backup already has something there",
        };
        let mut names = split(path)?;
        let Some(last) = names.pop() else {
            return Err(taken());
        };
        let mut folder = self;
        for name in names {
            let fresh = || Entry::Folder(Self::default());
            match folder.entries.entry(name.to_owned()).or_insert_with(fresh) {
                Entry::Folder(inner) => folder = inner,
                Entry::Node(_) => return Err(taken()),
            }
        }
        if folder.entries.contains_key(last) {
            return Err(taken());
        }
        folder
            .entries
            .insert(last.to_owned(), Entry::Node(make(last)));
        Ok(())
    }

    /// Stores the trees, deepest first; gives the id of this one.
    pub(crate) fn store(self, writer: &BlobWriter, scratch: &mut Scratch) -> Result<Id> {
        let mut nodes = Vec::with_capacity(self.entries.len());
        for (name, entry) in self.entries {
            nodes.push(match entry {
                Entry::Node(node) => node,
                Entry::Folder(inner) => Node::folder(&name, inner.store(writer, scratch)?),
            });
        }
        store_tree(nodes, writer, scratch)
    }
}

/// Stores one tree of nodes that are sorted by name.
pub(crate) fn store_tree(
    nodes: Vec<Node>,
    writer: &BlobWriter,
    scratch: &mut Scratch,
) -> Result<Id> {
    let bytes = Tree { nodes }.to_bytes().map_err(|e| Error::System {
        what: "memory for a document",
        source: std::io::Error::other(e),
    })?;
    let id = Id::of(&bytes);
    writer.store(BlobKind::Tree, id, &bytes, scratch)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let mut tree = TreeBuilder::default();
        let mut add = |path: &str| tree.insert(path, |name| Node::file(name, 0, Vec::new()));
        add("/a/b").unwrap();
        add("/a/c").unwrap();
        for bad in [
            "", "/", "a", "/a", "/a/b", "/a/b/c", "/a//b", "/a/../b", "/.", "/x/",
        ] {
            assert!(matches!(add(bad), Err(Error::InvalidPath { .. })), "{bad}");
        }
        assert!(add(&format!("/{}", "x".repeat(256))).is_err());
    }
}
