//! Trees: the JSON of a folder in a snapshot.
//!
//! Every node is written with the same fixed time, so a folder whose content did not change is
//! the same blob in the next snapshot. The time of a backup is in its snapshot.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::go_quote::{quote, unquote};
use crate::id::Id;

/// The time of every node.
const NODE_TIME: &str = "1970-01-01T00:00:00Z";
/// Go's mode bits: a folder of its owner alone, and a file of its owner alone.
const FOLDER_MODE: u32 = 1 << 31 | 0o700;
const FILE_MODE: u32 = 0o600;

/// A folder: nodes in the order of their names.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tree {
    /// restic writes `null` for no nodes.
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) nodes: Vec<Node>,
}

impl Tree {
    /// The blob's plain bytes, with the newline that restic ends it by.
    pub(crate) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// A file or folder (or, of other tools, something else) in a tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    #[serde(serialize_with = "name_out", deserialize_with = "name_in")]
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: NodeKind,
    #[serde(default)]
    mode: u32,
    #[serde(default = "node_time")]
    mtime: String,
    #[serde(default = "node_time")]
    atime: String,
    #[serde(default = "node_time")]
    ctime: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) size: u64,
    /// The blobs of a file; `null` (none) for everything else.
    #[serde(default)]
    pub(crate) content: Option<Vec<Id>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subtree: Option<Id>,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeKind {
    File,
    Dir,
    #[serde(other)]
    Other,
}

impl Node {
    pub(crate) fn file(name: &str, size: u64, content: Vec<Id>) -> Self {
        Self::new(name, NodeKind::File, FILE_MODE, size, Some(content), None)
    }

    pub(crate) fn folder(name: &str, subtree: Id) -> Self {
        Self::new(name, NodeKind::Dir, FOLDER_MODE, 0, None, Some(subtree))
    }

    fn new(
        name: &str,
        kind: NodeKind,
        mode: u32,
        size: u64,
        content: Option<Vec<Id>>,
        subtree: Option<Id>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            mode,
            mtime: node_time(),
            atime: node_time(),
            ctime: node_time(),
            uid: crate::host::uid(),
            gid: crate::host::gid(),
            size,
            content,
            subtree,
        }
    }

    /// Whether the name could lead out of its folder.
    pub(crate) fn name_is_safe(&self) -> bool {
        name_is_safe(&self.name)
    }
}

/// Whether a name is one step of a path and nothing else.
pub(crate) fn name_is_safe(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn node_time() -> String {
    NODE_TIME.to_owned()
}

fn is_zero(size: &u64) -> bool {
    *size == 0
}

fn name_out<S: Serializer>(name: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&quote(name))
}

fn name_in<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let quoted = String::deserialize(deserializer)?;
    unquote(&quoted).ok_or_else(|| serde::de::Error::custom("a name is quoted wrongly"))
}

fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Node>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_what_restic_expects() {
        let tree = Tree {
            nodes: vec![Node::file("a\"b", 3, vec![Id::of(b"abc")])],
        };
        let text = String::from_utf8(tree.to_bytes().unwrap()).unwrap();
        let start = r#"{"nodes":[{"name":"a\\\"b","type":"file","mode":384,"mtime":"1970"#;
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("}]}\n"));
        let read: Tree = serde_json::from_str(&text).unwrap();
        assert_eq!(read.nodes, tree.nodes);
    }

    #[test]
    fn trees_of_other_tools() {
        let text = r#"{"nodes":[{"name":"l","type":"symlink","linktarget":"x","content":null}]}"#;
        let tree: Tree = serde_json::from_str(text).unwrap();
        assert_eq!(tree.nodes[0].kind, NodeKind::Other);
        let empty: Tree = serde_json::from_str(r#"{"nodes":null}"#).unwrap();
        assert!(empty.nodes.is_empty());
    }

    proptest! {
        #[test]
        fn hostile_json_never_panics(text in "[\\[\\]{}\":,0-9a-z\\\\ ]{0,200}") {
            let _ = serde_json::from_str::<Tree>(&text);
        }

        #[test]
        fn hostile_nodes_never_panic(name in any::<String>(), size in any::<u64>()) {
            let node = serde_json::json!({"nodes": [
                {"name": name, "type": "file", "size": size, "content": [name]}]});
            let _ = serde_json::from_value::<Tree>(node);
        }
    }
}
