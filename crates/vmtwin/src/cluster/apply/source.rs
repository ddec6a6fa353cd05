//! A backup as a restore reads it: nodes' documents, their secrets where these are opened, and which node
//! had each guest last.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use vmtwin_cluster::manifest::{Node, NodeState};
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
    rank: Rank,
    id: String,
    name: NodeName,
}

/// Which of several nodes had a guest, the last one of all: what a node gave itself for the backup counts
/// for more than what was last known of it, and where the guest ran for more than where it was off, since
/// a migration may leave a definition behind.
type Rank = (bool, bool, OffsetDateTime);

fn note(holders: &mut BTreeMap<String, Holder>, node: &Node, document: NodeDocument) {
    let is_collected = node.state == NodeState::Collected;
    for guest in document.r#virtual.objects {
        let Some(uuid) = guest.uuid else { continue };
        let rank = (is_collected, guest.active == Some(true), document.taken_at);
        if holders.get(&uuid).is_none_or(|other| other.rank < rank) {
            let (id, name) = (node.id.clone(), node.name.clone());
            holders.insert(uuid, Holder { rank, id, name });
        }
    }
}

impl<'a> Source<'a> {
    /// Reads the documents of all nodes once: each of them has to be one.
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
            note(&mut holders, &node, document);
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
    /// A node's document and secrets, and what is to be heeded with it.
    pub(in crate::cluster) fn node(
        &mut self,
        name: &NodeName,
        options: &Options,
    ) -> Result<(NodeDocument, Option<Opened>, Options)> {
        let (document, options) = self.document(name, options)?;
        let mut nodes = self.archive.manifest().nodes.iter();
        let node = nodes.find(|node| node.name == *name).cloned();
        let opened = match node {
            Some(node) => self.secrets(&node)?,
            None => None,
        };
        Ok((document, opened, options))
    }

    /// The same without its secrets.
    pub(in crate::cluster) fn document(
        &mut self,
        name: &NodeName,
        options: &Options,
    ) -> Result<(NodeDocument, Options)> {
        let document = read_node(self.archive, name)?;
        let options = Options {
            elsewhere: self.moved_from(&document),
            ..options.clone()
        };
        Ok((document, options))
    }

    /// A node's secrets, where there are some and they are to be opened.
    pub(in crate::cluster) fn secrets(&mut self, node: &Node) -> Result<Option<Opened>> {
        match &self.opening {
            Some(opening) => opening.node(self.archive, node),
            None => Ok(None),
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use time::Duration;
    use vmtwin_cluster::node::{Hardware, Object, Objects, VERSION};

    use super::*;

    const GUEST: &str = "11111111-1111-4111-8111-111111111111";

    fn holder(nodes: [(NodeState, bool, i64); 2]) -> String {
        let mut holders = BTreeMap::new();
        for (number, (state, active, seconds)) in nodes.into_iter().enumerate() {
            let name: NodeName = format!("n{}", number + 1).parse().unwrap();
            let taken_at = OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
            let node = Node {
                name: name.clone(),
                id: name.to_string(),
                state,
                as_of: Some(taken_at),
                error: None,
                secrets: None,
            };
            let guest = Object {
                by: "libvirt".to_owned(),
                kind: "domain".to_owned(),
                name: "web".to_owned(),
                uuid: Some(GUEST.to_owned()),
                active: Some(active),
                autostart: None,
                definition: String::new(),
                parts: Vec::new(),
            };
            let document = NodeDocument {
                version: VERSION,
                name,
                id: node.id.clone(),
                taken_at,
                program: String::new(),
                hardware: Hardware::default(),
                logical: Objects::default(),
                r#virtual: Objects {
                    objects: vec![guest],
                    settings: Vec::new(),
                },
            };
            note(&mut holders, &node, document);
        }
        holders[GUEST].name.to_string()
    }

    #[test]
    fn a_guest_is_where_it_ran_last() {
        use NodeState::{Collected, LastKnown};
        assert_eq!(holder([(Collected, true, 1), (Collected, false, 2)]), "n1");
        assert_eq!(holder([(Collected, false, 2), (Collected, true, 1)]), "n2");
        assert_eq!(holder([(Collected, false, 1), (Collected, false, 2)]), "n2");
        assert_eq!(holder([(LastKnown, true, 2), (Collected, false, 1)]), "n2");
    }
}
