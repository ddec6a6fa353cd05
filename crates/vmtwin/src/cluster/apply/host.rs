//! The restore of this host: what it is as a plan, and the steps of it. Its own command line and its
//! agent come here.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::macros::format_description;
use vmtwin_cluster::NodeDocument;
use vmtwin_cluster::plan::{Options, Plan, Section, plan};

use super::live;
use crate::db::Db;
use crate::home::{Home, write_private};

/// What would be done here.
pub(in crate::cluster) struct Prepared {
    pub(in crate::cluster) plan: Plan,
    /// This host as it is now.
    pub(in crate::cluster) live: NodeDocument,
}

/// What the node of a document would be here; nothing is changed.
pub(in crate::cluster) fn prepare(
    home: &Home,
    db: &Db,
    document: &NodeDocument,
    options: &Options,
) -> Result<Prepared> {
    let live = live::document(document)?;
    if !options.to_new_hardware {
        refuse_other_machine(document, &live)?;
    }
    let plan = plan(
        document,
        &live::live((home, db), document, &live, options)?,
        options,
    );
    Ok(Prepared { plan, live })
}

/// What a backup of this node would change here; nothing is changed.
pub(in crate::cluster) fn plan_of(home: &Home, db: &Db, document: &NodeDocument) -> Result<Plan> {
    // Hardware is compared apart, with all of it that the host has.
    let options = Options {
        sections: vec![Section::Logical, Section::Virtual],
        ..Options::default()
    };
    let live = live::document(document)?;
    Ok(plan(
        document,
        &live::live((home, db), document, &live, &options)?,
        &options,
    ))
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
    let format = format_description!("[year][month][day]T[hour][minute][second].[subsecond]");
    let name = OffsetDateTime::now_utc().format(&format)?;
    let file = safety_folder(home)?.join(format!("{}-{name}.xml", live.name));
    write_private(&file, live.to_xml()?.as_bytes())?;
    Ok(file)
}
