//! This host as a node: its name and id, and what its configuration is.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use vmtwin_catalog::{Cluster, NewNode, NodeId};
use vmtwin_cluster::node::{Objects, Setting, VERSION, collect_hardware};
use vmtwin_cluster::{NodeDocument, NodeName};

use super::libvirt::{self, Sight};
use super::membership;
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

/// The configuration of this node as it was taken.
pub(crate) struct Collection {
    pub(crate) document: NodeDocument,
    /// What could not be taken.
    pub(crate) warnings: Vec<String>,
    /// Why the document does not count, if it does not: what libvirt defines could not be seen, and the
    /// last known configuration, which holds it, was left as it was.
    pub(crate) unseen: Option<String>,
}

/// Takes the configuration of this node, and keeps it as its last known one. One without what libvirt
/// defined is kept only where there is nothing to lose, or `libvirt_is_gone` says that it is so.
pub(crate) fn collect(home: &Home, db: &Db, libvirt_is_gone: bool) -> Result<Collection> {
    let identity = Identity::required(home)?;
    if libvirt_is_gone && libvirt::is_here() {
        bail!("libvirt is on this host: nothing was changed; run it without --without-libvirt");
    }
    // Registered again: version or host may have changed.
    register(home, db, None)?;
    let taken = take(home, db, &identity)?;
    if taken.unseen.is_some() && !libvirt_is_gone {
        return Ok(taken);
    }
    let (xml, at) = (taken.document.to_xml()?, taken.document.taken_at);
    db.run(async |catalog| catalog.keep_configuration(&identity.id, &xml, at).await)?;
    Ok(Collection {
        unseen: None,
        ..taken
    })
}

/// The id of this node, and a word for its configuration that is another one when that is; none where it
/// is in no cluster.
pub(crate) fn fingerprint(home: &Home, db: &Db) -> Result<Option<(NodeId, String)>> {
    let Some(identity) = Identity::of(home)? else {
        return Ok(None);
    };
    let taken = take(home, db, &identity)?;
    match taken.unseen {
        // A libvirt that does not run has not changed.
        Some(why) => bail!(why),
        None => Ok(Some((identity.id, taken.document.fingerprint()))),
    }
}

/// Why what was seen of libvirt is not all that this node has, if so.
fn unseen(db: &Db, identity: &Identity, defined: &libvirt::Defined) -> Result<Option<String>> {
    match defined.sight {
        Sight::Whole => Ok(None),
        Sight::Broken => Ok(Some(format!(
            "{}; see that it answers (virsh list --all), and if not: systemctl restart libvirtd",
            defined.warnings.join("; ")
        ))),
        Sight::Nothing if held_libvirt(db, &identity.id)? => Ok(Some(
            "libvirt does not run on this host, and did before; start it (systemctl start \
             libvirtd), or if the host shall have none any more, run on it: vmtwin cluster collect \
             --without-libvirt"
                .to_owned(),
        )),
        Sight::Nothing => Ok(None),
    }
}

/// Whether the last known configuration of a node holds what libvirt defines. One that cannot be read
/// holds nothing that could be lost.
fn held_libvirt(db: &Db, id: &NodeId) -> Result<bool> {
    let xml = db.run(async |catalog| catalog.configuration(id).await)?;
    let Some(document) = xml.and_then(|xml| NodeDocument::from_xml(&xml).ok()) else {
        return Ok(false);
    };
    let (logical, guests) = (&document.logical.objects, &document.r#virtual.objects);
    Ok(!logical.is_empty() || !guests.is_empty())
}

/// Takes the configuration.
fn take(home: &Home, db: &Db, identity: &Identity) -> Result<Collection> {
    let settings = match home.location() {
        Ok(location) => vec![Setting {
            name: "repository".to_owned(),
            value: location.to_string(),
        }],
        Err(_) => Vec::new(),
    };
    let defined = libvirt::collect();
    let unseen = unseen(db, identity, &defined)?;
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
    Ok(Collection {
        document,
        warnings: defined.warnings,
        unseen,
    })
}
