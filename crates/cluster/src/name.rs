//! Names of nodes and of the entries of an archive. Both become names of files, so what they may
//! hold is settled here, by types that cannot hold anything else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name of a node: that of a host.
pub(crate) const MAX_NAME_LEN: usize = 253;

/// The name of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let good = (1..=MAX_NAME_LEN).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(allowed);
        match good {
            true => Ok(Self(name.to_owned())),
            false => Err(Error::NodeName {
                name: name.to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an archive holds beside its manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EntryPath {
    /// The copy of the shared database: `database.jsonl`.
    Database,
    /// The configuration of a node: `nodes/NAME.xml`.
    Node(NodeName),
    /// The secrets of a node, sealed: `secrets/NAME.age`.
    Secrets(NodeName),
    /// What opens them all, sealed with a passphrase: `secrets.age`.
    SecretsIdentity,
}

impl EntryPath {
    /// The most that an entry may have, bytes. A node with 1,000 guests has some 10 MiB.
    pub fn max_bytes(&self) -> u64 {
        match self {
            Self::Database => 3 << 30,
            Self::Node(_) => 256 << 20,
            Self::Secrets(_) => 16 << 20,
            Self::SecretsIdentity => 64 << 10,
        }
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database => f.write_str("database.jsonl"),
            Self::Node(name) => write!(f, "nodes/{name}.xml"),
            Self::Secrets(name) => write!(f, "secrets/{name}.age"),
            Self::SecretsIdentity => f.write_str("secrets.age"),
        }
    }
}

impl FromStr for EntryPath {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        for fixed in [Self::Database, Self::SecretsIdentity] {
            if path == fixed.to_string() {
                return Ok(fixed);
            }
        }
        let named = |folder: &str, ending: &str| {
            let name = path.strip_prefix(folder)?.strip_suffix(ending)?;
            name.parse().ok()
        };
        let node = named("nodes/", ".xml").map(Self::Node);
        node.or_else(|| named("secrets/", ".age").map(Self::Secrets))
            .ok_or_else(|| format!("{path:?} is not the name of an entry"))
    }
}

impl TryFrom<String> for EntryPath {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        path.parse()
    }
}

impl From<EntryPath> for String {
    fn from(path: EntryPath) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for wrong in ["", ".", "..", ".a", "a/b", "a\\b", "a b", "a\n", "ä", "a\0"] {
            assert!(wrong.parse::<NodeName>().is_err(), "{wrong:?}");
            assert!(format!("nodes/{wrong}.xml").parse::<EntryPath>().is_err());
            assert!(format!("secrets/{wrong}.age").parse::<EntryPath>().is_err());
        }
        assert!("n".repeat(254).parse::<NodeName>().is_err());
        for wrong in [
            "/nodes/a.xml",
            "../nodes/a.xml",
            "nodes//a.xml",
            "nodes/a.xml/",
        ] {
            assert!(wrong.parse::<EntryPath>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn names_are_written_as_they_are_read(name in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,40}") {
            for kind in [EntryPath::Node, EntryPath::Secrets] {
                let entry = kind(name.parse().unwrap());
                prop_assert_eq!(entry.to_string().parse::<EntryPath>(), Ok(entry));
            }
        }
    }
}
