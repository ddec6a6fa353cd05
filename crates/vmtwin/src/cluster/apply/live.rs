//! This node as it is now, as a plan wants to know it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use time::OffsetDateTime;
use vmtwin_catalog::{Node, NodeId, VmRole, VmState};
use vmtwin_cluster::NodeDocument;
use vmtwin_cluster::node::{Objects, VERSION, collect_hardware};
use vmtwin_cluster::plan::{Live, Options, paths};

use super::super::libvirt::{self, Sight};
use super::super::node::Identity;
use super::hardware;
use crate::db::Db;
use crate::home::Home;

/// The configuration of this host now, under the name and id of the node in the backup.
pub(super) fn document(of: &NodeDocument) -> Result<NodeDocument> {
    let wants = !of.logical.objects.is_empty() || !of.r#virtual.objects.is_empty();
    if wants && !libvirt::is_here() {
        bail!(
            "the backup holds what libvirt defines, and libvirt does not run on this host: start \
             it (systemctl start libvirtd), then run this again"
        );
    }
    let defined = libvirt::collect();
    // What is not seen would be made a second time.
    if defined.sight == Sight::Broken {
        let why = defined.warnings.join("; ");
        bail!("this host cannot be compared with the backup, nothing was changed: {why}");
    }
    let objects = |objects| Objects {
        objects,
        settings: Vec::new(),
    };
    Ok(NodeDocument {
        version: VERSION,
        name: of.name.clone(),
        id: of.id.clone(),
        taken_at: OffsetDateTime::now_utc(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        hardware: collect_hardware(Path::new("/")),
        logical: objects(defined.logical),
        r#virtual: objects(defined.guests),
    })
}

/// The same with what lies outside it: files, and what other nodes have.
pub(super) fn live<'a>(
    (home, db): (&Home, &Db),
    then: &NodeDocument,
    now: &'a NodeDocument,
    options: &Options,
) -> Result<Live<'a>> {
    let missing = |path: &String| std::fs::symlink_metadata(path).is_err();
    Ok(Live {
        document: now,
        missing_paths: paths(then, options).into_iter().filter(missing).collect(),
        elsewhere: {
            let own = Identity::of(home)?.map(|own| own.id);
            elsewhere(db, own.as_ref(), then)?
        },
        addressed: hardware::addressed(now),
        secrets: None,
    })
}

/// Guests that other nodes said they have, since the backup was made, or that run there by the table of
/// guests.
pub(super) fn elsewhere(
    db: &Db,
    own: Option<&NodeId>,
    then: &NodeDocument,
) -> Result<BTreeMap<String, String>> {
    let mut guests = BTreeMap::new();
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    // This host may have a name of its own already, and be about to take another's place.
    let is_other = |node: &&Node| node.id.as_str() != then.id && Some(&node.id) != own;
    let others: Vec<&Node> = nodes.iter().filter(is_other).collect();
    for vm in db.run(async |catalog| catalog.vms().await)? {
        let runs = matches!(vm.state, VmState::Running | VmState::Paused);
        let on = others
            .iter()
            .find(|node| Some(&node.id) == vm.node.as_ref());
        if let Some(node) = on.filter(|_| runs && vm.role == VmRole::Guest) {
            guests.insert(vm.id.to_string(), node.name.clone());
        }
    }
    for node in others {
        let Some(xml) = db.run(async |catalog| catalog.configuration(&node.id).await)? else {
            continue;
        };
        // One that cannot be read says nothing; `cluster backup` tells of it.
        let Ok(other) = NodeDocument::from_xml(&xml) else {
            continue;
        };
        if other.taken_at <= then.taken_at {
            continue;
        }
        let uuids = other.r#virtual.objects.into_iter();
        let uuids = uuids.filter_map(|guest| guest.uuid);
        guests.extend(uuids.map(|uuid| (uuid, node.name.clone())));
    }
    Ok(guests)
}
