//! Which nodes of a backup are restored, and where each of them is: on this host, or where its agent
//! answers.

use anyhow::{Context, Result, bail};
use vmtwin_catalog::{Node, NodeId};
use vmtwin_cluster::manifest::NodeState;
use vmtwin_cluster::{Archive, NodeName, manifest};

use super::super::cli::ClusterRestoreArgs;
use super::super::node::Identity;
use crate::home::Home;

/// A node of a backup that is to be restored.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) name: NodeName,
    id: String,
    pub(super) place: Place,
    /// The node that it is restored on, where that is another one.
    pub(super) onto: Option<String>,
}

/// Where a node is restored.
#[derive(Debug)]
pub(super) enum Place {
    /// On this host.
    Here {
        /// It was no node, or another one, and takes its place.
        is_adopted: bool,
    },
    /// By the agent of this node.
    Agent { id: NodeId, address: String },
    /// Nowhere; why, and what to do.
    Nowhere(String),
}

impl Target {
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

    pub(super) fn is_adopted(&self) -> bool {
        matches!(self.place, Place::Here { is_adopted: true })
    }
}

/// What targets are chosen by.
struct Choosing<'a> {
    own: Option<Identity>,
    /// Nodes of the cluster now.
    rows: &'a [Node],
    args: &'a ClusterRestoreArgs,
    /// Nodes in the backup.
    nodes: &'a [manifest::Node],
}

/// The node that `--node` names, or all that the backup holds.
pub(super) fn choose(
    home: &Home,
    rows: &[Node],
    archive: &Archive,
    args: &ClusterRestoreArgs,
) -> Result<Vec<Target>> {
    let cx = Choosing {
        own: Identity::of(home)?,
        rows,
        args,
        nodes: &archive.manifest().nodes,
    };
    let names: Vec<&str> = cx.nodes.iter().map(|node| node.name.as_str()).collect();
    let names = names.join(", ");
    let chosen: Vec<&manifest::Node> = match &args.node {
        Some(name) => cx.nodes.iter().filter(|node| node.name == *name).collect(),
        None => cx.nodes.iter().collect(),
    };
    match chosen.len() {
        0 => bail!("which node? The backup holds {names}; give --node NAME"),
        1 => {}
        _ if cx.own.is_none() => {
            bail!("which node is this host? The backup holds {names}; give --node NAME")
        }
        _ if args.to_new_hardware => {
            bail!("--to-new-hardware is of one node: give --node NAME with it, of {names}")
        }
        _ => {}
    }
    let targets = chosen.iter().map(|node| Target {
        name: node.name.clone(),
        id: node.id.clone(),
        place: cx.place(node),
        onto: args.onto.as_ref().map(ToString::to_string),
    });
    Ok(targets.collect())
}

impl Choosing<'_> {
    fn place(&self, node: &manifest::Node) -> Place {
        if node.state == NodeState::Missing {
            return Place::Nowhere("the backup holds no configuration of it".to_owned());
        }
        if let Some(name) = &self.args.onto {
            let row = self.rows.iter().find(|row| row.name == name.as_str());
            return match row {
                Some(row) if self.is_own(row.id.as_str()) => Place::Here { is_adopted: false },
                row => agent(row, name.as_str()),
            };
        }
        if self.is_own(&node.id) {
            return Place::Here { is_adopted: false };
        }
        // A host that is no node (its home is lost) is told by its machine-id from another one.
        let adopts = match &self.own {
            None => true,
            Some(own) => self.args.to_new_hardware && !self.holds(own),
        };
        match adopts {
            true => Place::Here { is_adopted: true },
            false => {
                let name = node.name.as_str();
                match self.rows.iter().find(|row| row.id.as_str() == node.id) {
                    None if self.rows.iter().any(|row| row.name == name) => {
                        Place::Nowhere(format!(
                            "the {name} of the cluster joined anew, and is another node than the \
                             backup's; it takes over what that had by: --node {name} --onto {name} \
                             --to-new-hardware"
                        ))
                    }
                    row => agent(row, name),
                }
            }
        }
    }

    fn is_own(&self, id: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.id.as_str() == id)
    }

    fn holds(&self, own: &Identity) -> bool {
        self.nodes.iter().any(|node| node.id == own.id.as_str())
    }
}

/// Where a node's agent is.
fn agent(row: Option<&Node>, name: &str) -> Place {
    let Some(row) = row else {
        return Place::Nowhere(format!(
            "{name} is no node of the cluster now: let it join (vmtwin cluster token), or give \
             --to-new-hardware on the host that takes its place; if the database was lost, restore \
             that first, with --only-database"
        ));
    };
    match &row.address {
        Some(address) => Place::Agent {
            id: row.id.clone(),
            address: address.clone(),
        },
        None => Place::Nowhere("it has no agent: run this on it".to_owned()),
    }
}
