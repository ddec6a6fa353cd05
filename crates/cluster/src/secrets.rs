//! The secrets of one node: what its document leaves out. They are kept apart, sealed, and nothing here
//! seals: to an archive they are bytes that it cannot read.
//!
//! ```text
//! {"version": 1, "node": "…",
//!  "values":      {"UUID of a secret": "base64"},
//!  "definitions": {"name of a guest": "<domain…passwd='…'"},
//!  "files":       {"node-tls.json": "what it holds"}}
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::manifest::HeldSecrets;
use crate::plan::{GivenSecrets, passwords};

/// The newest version of the form that this program knows.
pub const VERSION: u32 = 1;

/// The secrets of one node. Never printed: not even with `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSecrets {
    /// The version of the form.
    pub version: u32,
    /// The node's id, a UUID.
    pub node: String,
    /// Values of libvirt's secrets, in base64, by the UUIDs of the secrets.
    #[serde(default)]
    pub values: BTreeMap<String, Zeroizing<String>>,
    /// Definitions with passwords, by the names of the guests; of those that have some.
    #[serde(default)]
    pub definitions: BTreeMap<String, Zeroizing<String>>,
    /// Files of the node's own, by name: its certificate and key, its settings, passwords of repositories,
    /// and certificate and key of the cluster's authority on the node that has them.
    #[serde(default)]
    pub files: BTreeMap<String, Zeroizing<String>>,
}

impl NodeSecrets {
    /// Those of a node that has none.
    #[must_use]
    pub fn none_of(node: &str) -> NodeSecrets {
        NodeSecrets {
            version: VERSION,
            node: node.to_owned(),
            values: BTreeMap::new(),
            definitions: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }

    /// As text that can be sealed.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>> {
        let bad = |error: serde_json::Error| bad(&error.to_string());
        serde_json::to_vec(self).map(Zeroizing::new).map_err(bad)
    }

    /// Reads what may come from anywhere.
    pub fn from_json(text: &[u8]) -> Result<NodeSecrets> {
        // The text of an error would show what it stumbled over.
        let read: NodeSecrets = serde_json::from_slice(text)
            .map_err(|error| bad(&format!("wrong in column {}", error.column())))?;
        match read.version {
            1..=VERSION => Ok(read),
            newer => Err(bad(&format!(
                "they are of version {newer}, and this program knows {VERSION}"
            ))),
        }
    }

    /// How many there are of each kind.
    #[must_use]
    pub fn held(&self) -> HeldSecrets {
        HeldSecrets {
            values: self.values.len() as u64,
            passwords: self.definitions.len() as u64,
            files: self.files.len() as u64,
        }
    }

    /// What a plan wants to know, and may show: which there are, and which are others `now`.
    #[must_use]
    pub fn given(&self, now: &NodeSecrets) -> GivenSecrets {
        let values = self.values.iter();
        let values =
            values.map(|(uuid, value)| (uuid.clone(), now.values.get(uuid) != Some(value)));
        let differs = |name: &String, then: &str| {
            let now = now.definitions.get(name).map_or("", |now| now.as_str());
            passwords(then) != passwords(now)
        };
        let definitions = self.definitions.iter();
        let passwords = definitions.map(|(name, then)| (name.clone(), differs(name, then)));
        let files = self.files.keys();
        GivenSecrets {
            values: values.collect(),
            passwords: passwords.collect(),
            files: files
                .map(|name| (name.clone(), !now.files.contains_key(name)))
                .collect(),
        }
    }
}

impl fmt::Debug for NodeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSecrets")
            .field("held", &self.held())
            .finish()
    }
}

fn bad(why: &str) -> Error {
    Error::BadSecrets {
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn some() -> NodeSecrets {
        let domain = "<domain><devices><graphics type='vnc' passwd='hunter2'/></devices></domain>";
        NodeSecrets {
            values: [("u1".to_owned(), "c2VzYW1l".to_owned().into())].into(),
            definitions: [("web".to_owned(), domain.to_owned().into())].into(),
            files: [("tls".to_owned(), "k3y".to_owned().into())].into(),
            ..NodeSecrets::none_of("n1")
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_of_it_is_printed() {
        let text = some().to_json().unwrap();
        assert_eq!(NodeSecrets::from_json(&text).unwrap(), some());
        let shown = format!(
            "{:?} {:?}",
            some(),
            some().given(&NodeSecrets::none_of("n1"))
        );
        for secret in ["c2VzYW1l", "hunter2", "k3y"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn an_error_shows_nothing_of_what_was_read() {
        for wrong in [
            &br#"{"version":1,"node":"n","values":{"u":"s3same","u":}}"#[..],
            br#"{"version":1,"node":"n","s3same":1}"#,
            br#"{"version":1,"node":"n","values":"s3same"}"#,
            br#"{"version":9,"node":"s3same"}"#,
            b"",
        ] {
            let error = NodeSecrets::from_json(wrong).unwrap_err().to_string();
            assert!(!error.contains("s3same"), "{error}");
        }
    }

    #[test]
    fn what_differs_is_told_without_values() {
        let none = NodeSecrets::none_of("n1");
        let given = some().given(&some());
        assert!(!given.values["u1"]);
        assert!(!given.passwords["web"]);
        assert!(!given.files["tls"]);
        let given = some().given(&none);
        assert!(given.values["u1"]);
        assert!(given.passwords["web"]);
        assert!(given.files["tls"]);
        assert_eq!(none.given(&some()), GivenSecrets::default());
    }
}
