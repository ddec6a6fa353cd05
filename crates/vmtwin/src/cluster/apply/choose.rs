//! Which node of a backup is restored, and that it is this host's: what other nodes are told to do
//! begins here.

use anyhow::{Context, Result, bail};
use vmtwin_catalog::NodeId;
use vmtwin_cluster::manifest::NodeState;
use vmtwin_cluster::{Archive, NodeName};

use super::super::node::Identity;
use crate::home::Home;

/// A node of a backup that this host is to be.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) name: NodeName,
    id: String,
    /// This host was no node, or another one, and takes its place.
    pub(super) is_adopted: bool,
}

impl Chosen {
    /// As this host's own.
    pub(super) fn identity(&self) -> Result<Identity> {
        Ok(Identity {
            id: self
                .id
                .parse::<NodeId>()
                .context("the backup gives the node no valid id")?,
            name: self.name.clone(),
        })
    }
}

/// The node called `wanted`, or this host's own, or the only one there is.
pub(super) fn choose(
    home: &Home,
    archive: &Archive,
    wanted: Option<&NodeName>,
    to_new_hardware: bool,
) -> Result<Chosen> {
    let nodes = &archive.manifest().nodes;
    let own = Identity::of(home)?;
    let is_own = |id: &str| own.as_ref().is_some_and(|own| own.id.as_str() == id);
    let found = match wanted {
        Some(name) => nodes.iter().find(|node| node.name == *name),
        None => nodes
            .iter()
            .find(|node| is_own(&node.id))
            .or_else(|| nodes.first().filter(|_| nodes.len() == 1)),
    };
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let Some(node) = found else {
        bail!(
            "which node? The backup holds {}; give --node NAME",
            names.join(", ")
        );
    };
    if node.state == NodeState::Missing {
        bail!("the backup holds no configuration of {}", node.name);
    }
    let is_adopted = !is_own(&node.id);
    let another = own
        .as_ref()
        .filter(|own| nodes.iter().any(|node| node.id == own.id.as_str()));
    if let Some(own) = another.filter(|_| is_adopted) {
        bail!(
            "{} is another node than this one, which is {}: run this there",
            node.name,
            own.name
        );
    }
    // A host that is no node (its home is lost) is told by its machine-id from another one.
    if is_adopted && !to_new_hardware && own.is_some() {
        bail!(
            "this host is not the node {}: run this there, or give --to-new-hardware if this host \
             takes its place",
            node.name
        );
    }
    Ok(Chosen {
        name: node.name.clone(),
        id: node.id.clone(),
        is_adopted,
    })
}
