//! This host as a node: its name and id, and what its configuration is.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use vmtwin_catalog::{Cluster, NewNode, NodeId};
use vmtwin_cluster::node::{Objects, Setting, VERSION, collect_hardware};
use vmtwin_cluster::{NodeDocument, NodeName};

use super::{libvirt, membership};
use crate::db::Db;
use crate::home::{Home, write_private};
use crate::libvirt::table;

/// `node.json` in the home folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The id, which stays when host and name change.
    pub(crate) id: NodeId,
    /// The name in the cluster.
    pub(crate) name: NodeName,
}

impl Identity {
    /// The identity of this host, if it is a node.
    pub(crate) fn of(home: &Home) -> Result<Option<Identity>> {
        let path = home.dir().join("node.json");
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is not valid", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The same, or what to do where it is none.
    pub(crate) fn required(home: &Home) -> Result<Identity> {
        Self::of(home)?.context(
            "this host is no node of a cluster; run: vmtwin cluster create NAME, or vmtwin \
             cluster join TOKEN",
        )
    }

    /// The identity of this host, made where it has none; `name` gives it another name.
    pub(super) fn kept(home: &Home, name: Option<&NodeName>) -> Result<Identity> {
        let before = Self::of(home)?;
        let name = match (name, &before) {
            (Some(name), _) => name.clone(),
            (None, Some(before)) => before.name.clone(),
            (None, None) => host_name()?
                .parse()
                .context("the host's name cannot name a node; give one with --node")?,
        };
        let id = before.map_or_else(NodeId::random, |before| Ok(before.id))?;
        Ok(Identity { id, name })
    }

    pub(super) fn keep(&self, home: &Home) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        write_private(&home.dir().join("node.json"), &text)
    }
}

pub(super) fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read the host's name")?;
    Ok(name.trim().to_owned())
}

/// Makes the catalog that of a cluster, and this host its first node. May be repeated.
pub(crate) fn create(
    home: &Home,
    name: &str,
    node: Option<&NodeName>,
    new_authority: bool,
) -> Result<Cluster> {
    let db = Db::open(home)?;
    let cluster = db.run(async |catalog| catalog.create_cluster(name).await)?;
    let is_new = Identity::of(home)?.is_none();
    register(home, &db, node)?;
    if is_new {
        // What this host had is this node's.
        let identity = Identity::required(home)?;
        db.run(async |catalog| catalog.give_vms_to(&identity.id).await)?;
        table::keep_followed(&db, &identity.id)?;
    }
    if new_authority {
        membership::found_anew(home, &db, &cluster)?;
    }
    membership::found(home, &db, &cluster)?;
    Ok(cluster)
}

/// Makes this host a node of the cluster whose catalog is in this database. May be repeated.
pub(crate) fn join(
    home: &Home,
    url: &str,
    node: Option<&NodeName>,
    force: bool,
) -> Result<Cluster> {
    let db = Db::open_database(home, url)?;
    let cluster = db
        .run(async |catalog| catalog.cluster().await)?
        .with_context(|| {
            format!(
                "{} belongs to no cluster; run on one host: vmtwin cluster create NAME --database URL",
                db.place()
            )
        })?;
    refuse_to_leave_guests(home, force)?;
    register(home, &db, node)?;
    home.keep_database(Some(url))?;
    Ok(cluster)
}

/// Fails if the catalog of this host holds guests, which a cluster's would not.
pub(super) fn refuse_to_leave_guests(home: &Home, force: bool) -> Result<()> {
    if force || !home.catalog().exists() || Identity::of(home)?.is_some() {
        return Ok(());
    }
    let own = Db::open_file(home)?;
    let left = own.run(async |catalog| catalog.vms().await)?.len();
    if left > 0 {
        bail!(
            "the catalog of this host holds {left} guests, which would be left behind in {}; \
             give --force to join without them, and add them again afterwards",
            own.place()
        );
    }
    Ok(())
}

fn register(home: &Home, db: &Db, node: Option<&NodeName>) -> Result<()> {
    let identity = Identity::kept(home, node)?;
    let row = NewNode {
        id: identity.id.clone(),
        name: identity.name.as_str().to_owned(),
        host: host_name()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: None,
    };
    db.run(async |catalog| catalog.join_node(&row).await)?;
    identity.keep(home)
}

/// Takes the configuration of this node, and keeps it as its last known one. Also what could not
/// be taken.
pub(crate) fn collect(home: &Home, db: &Db) -> Result<(NodeDocument, Vec<String>)> {
    let identity = Identity::required(home)?;
    // Registered again: version or host may have changed.
    register(home, db, None)?;
    let (document, warnings) = take(home, &identity)?;
    let xml = document.to_xml()?;
    let at = document.taken_at;
    db.run(async |catalog| catalog.keep_configuration(&identity.id, &xml, at).await)?;
    Ok((document, warnings))
}

/// The id of this node, and a word for its configuration that is another one when that is; none where it
/// is in no cluster.
pub(crate) fn fingerprint(home: &Home) -> Result<Option<(NodeId, String)>> {
    let Some(identity) = Identity::of(home)? else {
        return Ok(None);
    };
    let (document, _) = take(home, &identity)?;
    Ok(Some((identity.id, document.fingerprint())))
}

/// Takes the configuration; also what could not be taken.
fn take(home: &Home, identity: &Identity) -> Result<(NodeDocument, Vec<String>)> {
    let settings = match home.location() {
        Ok(location) => vec![Setting {
            name: "repository".to_owned(),
            value: location.to_string(),
        }],
        Err(_) => Vec::new(),
    };
    let defined = libvirt::collect();
    let document = NodeDocument {
        version: VERSION,
        name: identity.name.clone(),
        id: identity.id.to_string(),
        taken_at: OffsetDateTime::now_utc(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        hardware: collect_hardware(Path::new("/")),
        logical: Objects {
            objects: defined.logical,
            settings: Vec::new(),
        },
        r#virtual: Objects {
            objects: defined.guests,
            settings,
        },
    };
    Ok((document, defined.warnings))
}
