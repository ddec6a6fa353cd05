//! On which node a guest is, as this host sees it.
//!
//! A row without a node is this host's where there is no cluster. In a cluster it is on no node: its
//! domain is gone, its node was removed, or the row is of before nodes were noted. Whoever finds the
//! guest takes it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use time::OffsetDateTime;
use vmtwin_catalog::{ConnectionKind, Node, NodeId, Vm, VmId, VmRole};

use super::node::Identity;
use crate::backup::Cx;
use crate::db::Db;
use crate::home::Home;

/// Where a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this host.
    Here,
    /// On the node of this name.
    On(String),
    /// On one that was not heard of for the lease, or is no node any more.
    Silent(String),
    /// On no node.
    Nowhere,
}

/// This host in its cluster, and the other nodes.
#[derive(Debug)]
pub(crate) struct Here {
    own: Option<Identity>,
    nodes: HashMap<NodeId, Node>,
    lease: Duration,
}

impl Here {
    /// This host, as a node if it is one.
    pub(crate) fn of(home: &Home, db: &Db) -> Result<Here> {
        let own = Identity::of(home)?;
        let (nodes, lease) = match own {
            None => (Vec::new(), Duration::ZERO),
            Some(_) => db.run(async |c| Ok((c.nodes().await?, c.lease().await?)))?,
        };
        let nodes = nodes.into_iter().map(|node| (node.id.clone(), node));
        Ok(Here {
            own,
            nodes: nodes.collect(),
            lease,
        })
    }

    /// This host as a node; none where there is no cluster.
    pub(crate) fn node(&self) -> Option<&NodeId> {
        self.own.as_ref().map(|own| &own.id)
    }

    /// This host's node, as the catalog has it.
    pub(crate) fn own(&self) -> Option<&Node> {
        self.nodes.get(self.node()?)
    }

    /// How long a node counts as there after it was heard of.
    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// The nodes that were heard of within the lease.
    pub(crate) fn there(&self) -> impl Iterator<Item = &Node> {
        let now = OffsetDateTime::now_utc();
        self.nodes
            .values()
            .filter(move |node| node.is_there(self.lease, now))
    }

    /// The name of a VM's node.
    pub(crate) fn node_name(&self, vm: &Vm) -> Option<&str> {
        let node = self.nodes.get(vm.node.as_ref()?)?;
        Some(&node.name)
    }

    /// Where a guest or a twin is.
    pub(crate) fn place(&self, vm: &Vm) -> Place {
        match (&self.own, &vm.node) {
            (None, _) => Place::Here,
            (Some(own), Some(node)) if own.id == *node => Place::Here,
            (Some(_), None) => Place::Nowhere,
            (Some(_), Some(node)) => match self.nodes.get(node) {
                None => Place::Silent(node.to_string()),
                Some(node) if node.is_there(self.lease, OffsetDateTime::now_utc()) => {
                    Place::On(node.name.clone())
                }
                Some(node) => Place::Silent(node.name.clone()),
            },
        }
    }

    /// Refuses what can only be done where the guest is, and says where that is. A guest on no node
    /// is tried: only a try can tell.
    pub(crate) fn refuse_elsewhere(&self, vm: &Vm, command: &str) -> Result<()> {
        let name = &vm.name;
        let node = match self.place(vm) {
            Place::Here | Place::Nowhere => return Ok(()),
            Place::On(node) => node,
            Place::Silent(node) => bail!(
                "{name} ran on {node} last, which has not been heard of for {} s; if it runs on \
                 another node now, start `vmtwin serve` there, or run `vmtwin vm list` there once",
                self.lease.as_secs()
            ),
        };
        let host = vm.node.as_ref().and_then(|id| self.nodes.get(id));
        let host = host.map_or("HOST", |node| &node.host);
        bail!(
            "{name} runs on {node}: run this there, or, if its API is reached from here: vmtwin \
             --server https://{host}:PORT {command} {name}"
        )
    }

    /// A setting of this node alone; of the host where there is no cluster.
    pub(crate) fn setting(&self, key: &str) -> String {
        match self.node() {
            None => key.to_owned(),
            Some(node) => format!("{key}.{node}"),
        }
    }

    /// Names that a guest may have in the table, the best one first: another node may have a guest of
    /// that name.
    pub(crate) fn names(&self, name: &str, id: &VmId) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        if let Some(own) = &self.own {
            names.push(format!("{name}@{}", own.name));
            let start = id.as_str().get(..8).unwrap_or_default();
            names.push(format!("{name}@{}-{start}", own.name));
        }
        names
    }

    /// Takes guests that are on no node and whose sockets are here.
    pub(crate) fn take_sockets(&self, cx: &Cx<'_>) -> Result<()> {
        let Some(node) = self.node() else {
            return Ok(());
        };
        for vm in cx.db.run(async |c| c.vms().await)? {
            let is_socket = vm.connection.kind == ConnectionKind::Qmp && vm.role == VmRole::Guest;
            if is_socket && vm.node.is_none() && Path::new(&vm.connection.address).exists() {
                cx.db.run(async |c| c.set_node(&vm.id, Some(node)).await)?;
            }
        }
        Ok(())
    }
}
