//! What an archive says of itself: `manifest.json`, its first entry.
//!
//! ```text
//! {
//!   "format": "vmtwin-cluster-backup", "version": 1,
//!   "cluster": {"id": "…", "name": "lab"},
//!   "time": "2026-11-22T19:22:41Z",
//!   "program": "0.1.0",
//!   "coordinator": "node1",
//!   "nodes": [
//!     {"name": "node1", "id": "…", "state": "collected", "as_of": "2026-11-22T19:22:41Z"},
//!     {"name": "node2", "id": "…", "state": "last-known", "as_of": "2026-11-20T01:00:00Z",
//!      "error": "does not answer"},
//!     {"name": "node3", "id": "…", "state": "missing", "error": "does not answer"}],
//!   "database": {"schema": 2, "rows": 314},
//!   "entries": [{"path": "database.jsonl", "bytes": 1024, "sha256": "…"}, …]
//! }
//! ```
//! With secrets it is of version 2, says of each node how many it holds
//! (`"secrets": {"values": 3, "passwords": 1, "files": 1}`), and of the whole who can open them
//! (`"sealed": {"recipients": ["age1…"], "passphrase": false}`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::name::{EntryPath, NodeName};

/// Names the format.
pub const FORMAT: &str = "vmtwin-cluster-backup";
/// The newest version of the format that this program knows.
pub const VERSION: u32 = 2;
/// The version of an archive that holds no secrets: programs that know no later one read it.
pub const VERSION_WITHOUT_SECRETS: u32 = 1;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The version of the format.
    pub version: u32,
    /// The cluster it is of.
    pub cluster: Cluster,
    /// When the backup began.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The version of the program that wrote it.
    pub program: String,
    /// The node that collated it.
    pub coordinator: NodeName,
    /// Every node of the cluster, also those that are not in the archive.
    pub nodes: Vec<Node>,
    /// The shared database.
    pub database: Option<Database>,
    /// Who can open the secrets of its nodes, if it was made with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
    /// Every other entry of the archive, by path. Filled in by [`crate::Parts::publish`].
    pub entries: Vec<Entry>,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its id, a UUID: names may be given twice.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A node, and whether its configuration is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its id, a UUID: that of its machine may change when it is replaced.
    pub id: String,
    /// Whether its configuration is here.
    pub state: NodeState,
    /// Of when its configuration is.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub as_of: Option<OffsetDateTime>,
    /// Why it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many of its secrets are here, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<HeldSecrets>,
}

/// How many secrets of a node there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldSecrets {
    /// Values of libvirt's secrets.
    pub values: u64,
    /// Guests with passwords in their definitions.
    pub passwords: u64,
    /// Files of the node's own: its certificate, its settings, passwords of repositories.
    pub files: u64,
}

/// Who can open the secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Recipients as age knows them: `age1…`.
    pub recipients: Vec<String>,
    /// Who knows a passphrase: it opens `secrets.age`, which holds the identity of a recipient.
    pub passphrase: bool,
}

/// Whether a node's configuration is in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It gave it for this backup.
    Collected,
    /// It gave none; this is the last one it gave.
    LastKnown,
    /// It gave none, and none is known.
    Missing,
}

/// The copy of the shared database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The schema of its tables.
    pub schema: i64,
    /// Rows of all tables.
    pub rows: u64,
}

/// An entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path.
    pub path: EntryPath,
    /// Its size, unpacked.
    pub bytes: u64,
    /// SHA-256 of it, unpacked, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The entry of this path.
    pub fn entry(&self, path: &EntryPath) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == *path)
    }

    /// The nodes whose configuration is not of this backup.
    pub fn absent(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .iter()
            .filter(|node| node.state != NodeState::Collected)
    }

    /// Whether nodes, database and entries speak of the same things; else why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut expected = BTreeSet::new();
        if self.database.is_some() {
            expected.insert(EntryPath::Database);
        }
        let mut names = BTreeSet::new();
        for node in &self.nodes {
            if !names.insert(&node.name) {
                return Err(format!("node {} is named twice", node.name));
            }
            if node.state != NodeState::Missing {
                expected.insert(EntryPath::Node(node.name.clone()));
            }
            if node.secrets.is_some() {
                expected.insert(EntryPath::Secrets(node.name.clone()));
            }
        }
        let sealed = self.sealed.as_ref();
        if sealed.is_some_and(|sealed| sealed.passphrase) {
            expected.insert(EntryPath::SecretsIdentity);
        }
        if sealed.is_none() && self.nodes.iter().any(|node| node.secrets.is_some()) {
            return Err("it holds secrets, and does not say for whom".to_owned());
        }
        let mut before: Option<&EntryPath> = None;
        for entry in &self.entries {
            if before.is_some_and(|before| *before >= entry.path) {
                return Err("its entries are not in order".to_owned());
            }
            before = Some(&entry.path);
            if !expected.remove(&entry.path) {
                return Err(format!("{} belongs to no node", entry.path));
            }
        }
        match expected.first() {
            None => Ok(()),
            Some(path) => Err(format!("{path} is missing")),
        }
    }
}
