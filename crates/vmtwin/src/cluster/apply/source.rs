//! A backup as a restore reads it: nodes' documents, their secrets where these are opened, and which node
//! had each guest last.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use vmtwin_cluster::manifest::NodeState;
use vmtwin_cluster::plan::Options;
use vmtwin_cluster::{Archive, EntryPath, NodeDocument, NodeName};

use super::super::secrets::{Opened, Opening};

/// A backup, and what opens its secrets.
pub(in crate::cluster) struct Source<'a> {
    pub(in crate::cluster) archive: &'a mut Archive,
    opening: Option<Opening>,
    /// Which node had each guest last, by the guest's UUID.
    holders: BTreeMap<String, Holder>,
}

/// A node that had a guest.
struct Holder {
    as_of: (bool, OffsetDateTime),
    id: String,
    name: NodeName,
}

impl<'a> Source<'a> {
    pub(in crate::cluster) fn of(
        archive: &'a mut Archive,
        opening: Option<Opening>,
    ) -> Result<Source<'a>> {
        let mut holders: BTreeMap<String, Holder> = BTreeMap::new();
        for node in archive.manifest().nodes.clone() {
            if node.state == NodeState::Missing {
                continue;
            }
            let document = read_node(archive, &node.name)?;
            // What a node gave itself for the backup counts for more than what was last known.
            let as_of = (node.state == NodeState::Collected, document.taken_at);
            let guests = document.r#virtual.objects.into_iter();
            for uuid in guests.filter_map(|guest| guest.uuid) {
                if holders.get(&uuid).is_none_or(|other| other.as_of < as_of) {
                    let (id, name) = (node.id.clone(), node.name.clone());
                    holders.insert(uuid, Holder { as_of, id, name });
                }
            }
        }
        Ok(Source {
            archive,
            opening,
            holders,
        })
    }

    /// Guests of a node that were on another one, by the backup itself: the node's configuration is of
    /// before they moved.
    fn moved_from(&self, document: &NodeDocument) -> BTreeMap<String, String> {
        let guests = document.r#virtual.objects.iter();
        let uuids = guests.filter_map(|guest| guest.uuid.as_ref());
        let moved = uuids.filter_map(|uuid| {
            let holder = self.holders.get(uuid)?;
            (holder.id != document.id).then(|| (uuid.clone(), holder.name.to_string()))
        });
        moved.collect()
    }
}

impl Source<'_> {
    /// The same without secrets that cannot be opened.
    pub(in crate::cluster) fn node_without_errors(
        &mut self,
        name: &NodeName,
        options: &Options,
    ) -> Result<(NodeDocument, Option<Opened>, Options)> {
        self.node(name, options).or_else(|_| {
            let opening = self.opening.take();
            let read = self.node(name, options);
            self.opening = opening;
            read
        })
    }

    /// A node's document and secrets, and what is to be heeded with it.
    pub(in crate::cluster) fn node(
        &mut self,
        name: &NodeName,
        options: &Options,
    ) -> Result<(NodeDocument, Option<Opened>, Options)> {
        let document = read_node(self.archive, name)?;
        let options = Options {
            elsewhere: self.moved_from(&document),
            ..options.clone()
        };
        let mut nodes = self.archive.manifest().nodes.iter();
        let node = nodes.find(|node| node.name == *name).cloned();
        let opened = match (&self.opening, node) {
            (Some(opening), Some(node)) => opening.node(self.archive, &node)?,
            _ => None,
        };
        Ok((document, opened, options))
    }
}

/// The configuration of a node in a backup.
pub(crate) fn read_node(archive: &mut Archive, name: &NodeName) -> Result<NodeDocument> {
    let mut xml = String::new();
    archive
        .reader(&EntryPath::Node(name.clone()))?
        .read_to_string(&mut xml)
        .with_context(|| format!("cannot read the configuration of {name}"))?;
    Ok(NodeDocument::from_xml(&xml)?)
}
