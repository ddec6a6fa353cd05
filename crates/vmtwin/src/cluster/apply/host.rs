//! The restore of this host: what it is as a plan, and the steps of it. Its own command line and its
//! agent come here.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::macros::format_description;
use vmtwin_catalog::NodeId;
use vmtwin_cluster::manifest::HeldSecrets;
use vmtwin_cluster::plan::{Live, Options, Plan, plan};
use vmtwin_cluster::{NodeDocument, NodeName, NodeSecrets};

use super::super::membership;
use super::super::node::Identity;
use super::super::secrets::{Opened, Recipients, collect};
use super::live;
use crate::db::Db;
use crate::home::{Home, write_private};

/// What would be done here.
pub(in crate::cluster) struct Prepared {
    pub(in crate::cluster) plan: Plan,
    /// This host as it is now.
    pub(in crate::cluster) live: NodeDocument,
    /// Its secrets in the backup, where they were opened, and those that it has now.
    pub(in crate::cluster) secrets: Option<(Opened, NodeSecrets)>,
    /// The node that this host is until now, where it takes another's place.
    pub(super) leaves: Option<NodeName>,
}

/// What the node of a document would be here; nothing is changed. Unless this host takes the node's
/// place (`is_adopted`), another node stays itself: it is given none of that node's own files.
pub(in crate::cluster) fn prepare(
    (home, db): (&Home, &Db),
    (document, mut opened): (&NodeDocument, Option<Opened>),
    is_adopted: bool,
    options: &Options,
) -> Result<Prepared> {
    let leaves = Identity::of(home)?.filter(|own| own.id.as_str() != document.id);
    if let Some(opened) = opened.as_mut().filter(|_| leaves.is_some() && !is_adopted) {
        opened.secrets.files.clear();
    }
    let live = live::document(document)?;
    let secrets = match opened {
        Some(opened) => {
            let mut now = secrets_now(home, document)?;
            if leaves.is_some() {
                // The certificate that is here is another node's.
                now.files.remove(membership::NODE);
            }
            Some((opened, now))
        }
        None => None,
    };
    if !options.to_new_hardware {
        refuse_other_machine(document, &live)?;
    }
    let mut now = live::live((home, db), document, &live, options)?;
    now.secrets = secrets.as_ref().map(|(then, now)| then.secrets.given(now));
    let plan = plan(document, &now, options);
    Ok(Prepared {
        plan,
        live,
        secrets,
        leaves: leaves.filter(|_| is_adopted).map(|own| own.name),
    })
}

/// The secrets of this host, under the id of the node in the backup.
fn secrets_now(home: &Home, document: &NodeDocument) -> Result<NodeSecrets> {
    let (now, warnings) = collect(home, &document.id)?;
    for why in warnings {
        // A private value can be set and not be read: it is set again.
        tracing::warn!("{why}");
    }
    Ok(now)
}

/// What a backup of this node would change here; nothing is changed.
pub(in crate::cluster) fn plan_of(
    (home, db): (&Home, &Db),
    (document, opened): (&NodeDocument, Option<Opened>),
    options: &Options,
) -> Result<Plan> {
    let live = live::document(document)?;
    let mut now = live::live((home, db), document, &live, options)?;
    if let Some(opened) = opened {
        now.secrets = Some(opened.secrets.given(&secrets_now(home, document)?));
    }
    Ok(plan(document, &now, options))
}

/// What it would change on another node, whose configuration is `now`. Files and addresses of that host
/// are not looked at.
pub(in crate::cluster) fn plan_elsewhere(
    db: &Db,
    document: &NodeDocument,
    now: &NodeDocument,
    options: &Options,
) -> Result<Plan> {
    let id: NodeId = now.id.parse().context("the node has no valid id")?;
    let now = Live {
        document: now,
        missing_paths: BTreeSet::new(),
        elsewhere: live::elsewhere(db, Some(&id), document)?,
        addressed: BTreeSet::new(),
        secrets: None,
    };
    Ok(plan(document, &now, options))
}

/// A node whose machine is another is restored only where that is said.
fn refuse_other_machine(document: &NodeDocument, live: &NodeDocument) -> Result<()> {
    let (then, now) = (&document.hardware.host, &live.hardware.host);
    match (&then.machine_id, &now.machine_id) {
        (Some(old), Some(new)) if old != new => bail!(
            "{} was on another machine ({}, machine-id {old}), this is {} ({new}): nothing was \
             changed; give --to-new-hardware if it takes its place",
            document.name,
            then.name,
            now.name
        ),
        _ => Ok(()),
    }
}

/// Where what is there before a restore is kept.
pub(super) fn safety_folder(home: &Home) -> Result<PathBuf> {
    let folder = home.cluster_dir()?.join("before-restore");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// Keeps this host as it is now.
pub(in crate::cluster) fn keep_live(home: &Home, live: &NodeDocument) -> Result<PathBuf> {
    let file = safety_file(home, live, "xml")?;
    write_private(&file, live.to_xml()?.as_bytes())?;
    Ok(file)
}

/// Keeps the secrets that this host has now, sealed for who opened those of the backup; none if they
/// were not opened, or it has none.
pub(in crate::cluster) fn keep_secrets(
    home: &Home,
    prepared: &Prepared,
) -> Result<Option<PathBuf>> {
    let Some((opened, now)) = &prepared.secrets else {
        return Ok(None);
    };
    if now.held() == HeldSecrets::default() {
        return Ok(None);
    }
    let recipients: Result<Recipients, String> = opened.recipients.join(",").parse();
    let sealed = recipients.map_err(anyhow::Error::msg)?.seal(now)?;
    let file = safety_file(home, &prepared.live, "secrets.age")?;
    write_private(&file, &sealed)?;
    Ok(Some(file))
}

fn safety_file(home: &Home, live: &NodeDocument, kind: &str) -> Result<PathBuf> {
    let format = format_description!("[year][month][day]T[hour][minute][second].[subsecond]");
    let name = OffsetDateTime::now_utc().format(&format)?;
    Ok(safety_folder(home)?.join(format!("{}-{name}.{kind}", live.name)))
}
