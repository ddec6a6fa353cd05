//! Files of the node's own that are secret, or without which it would not be the node that it was: they lie
//! in the home folder, and one that is there is never replaced.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use zeroize::Zeroizing;

use super::super::{membership, permission};
use crate::home::{Home, write_new_private};

/// Longest of them, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What a file is, by its name.
enum Kind {
    /// Certificate and key of the cluster's authority.
    Authority,
    /// Certificate and key of this node.
    Node,
    /// Settings: where repository and catalog are.
    Settings,
    /// Nodes that may restore this one.
    Allowed,
    /// Password of the repository, or of a further one.
    Password,
}

impl Kind {
    fn of(name: &str) -> Option<Kind> {
        Some(match name {
            membership::AUTHORITY => Kind::Authority,
            membership::NODE => Kind::Node,
            "config.json" => Kind::Settings,
            permission::FILE => Kind::Allowed,
            "password" => Kind::Password,
            _ => {
                let named = name.strip_prefix("password-")?;
                crate::home::check_name(named).ok()?;
                Kind::Password
            }
        })
    }

    /// Whether it is what it is to be. No error shows anything of it.
    fn accepts(&self, text: &str) -> bool {
        match self {
            Kind::Authority => membership::is_authority(text),
            Kind::Node => membership::is_node(text),
            Kind::Settings => Home::is_settings(text),
            Kind::Allowed => serde_json::from_str::<permission::Allowed>(text).is_ok(),
            Kind::Password => text.lines().next().is_some_and(|line| !line.is_empty()),
        }
    }
}

/// Those that this host has, by their names.
pub(super) fn read(home: &Home) -> Result<BTreeMap<String, Zeroizing<String>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(home.dir())? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if Kind::of(&name).is_none() || !entry.file_type()?.is_file() {
            continue;
        }
        if entry.metadata()?.len() > MAX_BYTES {
            bail!("{} is too long", entry.path().display());
        }
        let text = Zeroizing::new(std::fs::read_to_string(entry.path())?);
        files.insert(name, text);
    }
    Ok(files)
}

/// Keeps one that this host had, or the one whose place it takes.
pub(in crate::cluster) fn keep(home: &Home, name: &str, text: &str) -> Result<()> {
    let Some(kind) = Kind::of(name) else {
        bail!("{name} is no file of a node");
    };
    if !kind.accepts(text) {
        bail!("{name} in the backup is damaged");
    }
    write_new_private(&home.dir().join(name), text.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn no_other_file_is_written() {
        for name in [
            "",
            "catalog.db",
            "node.json",
            "../config.json",
            "password-../x",
            "password-",
            "/etc/shadow",
        ] {
            assert!(Kind::of(name).is_none(), "{name}");
        }
        for (name, wrong) in [
            ("config.json", "[]"),
            ("config.json", "{\"nonsense\":1}"),
            (membership::NODE, "{}"),
            (membership::AUTHORITY, "{}"),
            (permission::FILE, "{}"),
            ("password", ""),
            ("password-offsite", "\nx"),
        ] {
            assert!(!Kind::of(name).unwrap().accepts(wrong), "{name}");
        }
        assert!(Kind::of("config.json").unwrap().accepts("{}"));
        assert!(Kind::of("password-offsite").unwrap().accepts("x\n"));
    }
}
