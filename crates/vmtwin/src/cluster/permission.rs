//! Which nodes may restore this one: `HOME/restore-allowed.json`.
//!
//! Who restores a node defines guests on it, and so may do there what root may. The right to ask for
//! a node's configuration does not hold that, and the list is a file of the node itself: the shared
//! database can be written by every node.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vmtwin_catalog::NodeId;
use vmtwin_cluster::NodeName;

use super::node::Identity;
use crate::db::Db;
use crate::home::{Home, write_private};

/// The file, in the home folder.
pub(super) const FILE: &str = "restore-allowed.json";

/// `restore-allowed.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Allowed {
    /// Nodes that may.
    pub(crate) nodes: Vec<Identity>,
}

/// The nodes that may restore this one.
pub(crate) fn allowed(home: &Home) -> Result<Allowed> {
    let path = path(home);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is not valid", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Allowed::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Whether a node may restore this one.
pub(super) fn allows(home: &Home, id: &NodeId) -> Result<bool> {
    Ok(allowed(home)?.nodes.iter().any(|node| node.id == *id))
}

/// Lets nodes restore this one, from now on. May be repeated.
pub(crate) fn allow(home: &Home, names: &[NodeName]) -> Result<Allowed> {
    let own = Identity::required(home)?;
    let nodes = Db::open(home)?.run(async |catalog| catalog.nodes().await)?;
    let mut kept = allowed(home)?;
    for name in names {
        let found = nodes.iter().find(|node| node.name == name.as_str());
        let id = &found
            .with_context(|| format!("the cluster has no node {name}; see: vmtwin cluster nodes"))?
            .id;
        if own.id == *id {
            bail!("{name} is this node, which always may; name those that shall restore it");
        }
        kept.nodes.retain(|node| node.id != *id);
        kept.nodes.push(Identity {
            id: id.clone(),
            name: name.clone(),
        });
    }
    keep(home, kept)
}

/// Takes it back; from all nodes if none is named. May be repeated.
pub(crate) fn deny(home: &Home, names: &[NodeName]) -> Result<Allowed> {
    let mut kept = allowed(home)?;
    kept.nodes
        .retain(|node| !names.is_empty() && !names.contains(&node.name));
    keep(home, kept)
}

fn keep(home: &Home, kept: Allowed) -> Result<Allowed> {
    write_private(&path(home), &serde_json::to_vec_pretty(&kept)?)?;
    Ok(kept)
}

fn path(home: &Home) -> PathBuf {
    home.dir().join(FILE)
}
