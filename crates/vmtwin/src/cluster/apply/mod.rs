//! The restore of a node, this one: plan, show, ask, keep what is there, apply, and the database
//! last.
//!
//! ```text
//!   archive ─► choose ─► document ─┐
//!   live: libvirt, hardware ───────┴─► plan ─► shown ─► yes? ─► safety backup ─► steps ─► database
//! ```
//! There is no file of progress: a second run makes a new plan, which holds what is not done yet.

mod choose;
mod live;
mod report;
mod steps;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::macros::format_description;
use vmtwin_cluster::plan::{Options, Plan, Section, plan};
use vmtwin_cluster::{Archive, NodeDocument};

pub(crate) use report::NodeRestoreReport;

use super::backup::{backup, refuse_other_cluster};
use super::cli::{ClusterBackupArgs, ClusterRestoreArgs};
use super::node::Identity;
use super::restore::restore_database;
use super::validate::read_node;
use crate::db::Db;
use crate::home::{Home, write_private};
use crate::ui::Ui;

/// How long another node may take to give its part of the backup made before a restore, seconds.
const SAFETY_NODE_TIMEOUT_S: u64 = 30;

/// Restores this node, and then the database. May be repeated.
pub(crate) fn restore(
    home: &Home,
    ui: &Ui,
    args: &ClusterRestoreArgs,
) -> Result<NodeRestoreReport> {
    let mut archive = Archive::open(&args.file)?;
    archive.verify()?;
    let db = Db::open(home)?;
    refuse_other_cluster(&db, &archive)?;
    let chosen = choose::choose(home, &archive, args.node.as_ref(), args.to_new_hardware)?;
    let document = read_node(&mut archive, &chosen.name)?;
    let options = options(args);
    let live = live::document(&document)?;
    if !args.to_new_hardware {
        refuse_other_machine(&document, &live)?;
    }
    let plan = plan(
        &document,
        &live::live((home, &db), &document, &live, &options)?,
        &options,
    );
    let with_database =
        !args.skip_database && args.kind.is_none() && archive.manifest().database.is_some();
    if with_database && !args.dry_run {
        refuse_to_replace(&db, args.force)?;
    }
    let mut report = NodeRestoreReport::of(plan, args.dry_run);
    ui.note(&report.plan.to_string());
    if args.dry_run {
        return Ok(report);
    }
    let to_do = !report.plan.is_done();
    if (to_do || with_database) && !args.yes {
        confirm(to_do, with_database)?;
    }
    if to_do {
        let copy = keep_what_is_there(home, ui, &db, &live)?;
        ui.note(&format!("before: {}", copy.display()));
        report.safety_backup = Some(copy);
        steps::apply(&home.cancel(), ui, options.force, &mut report)?;
    }
    if report.is_failed() || !with_database {
        return Ok(report);
    }
    if chosen.is_adopted {
        chosen.identity()?.keep(home)?;
    }
    // Its connection would hold the catalog while it is replaced.
    drop(db);
    match restore_database(home, &args.file, true) {
        Ok(database) => report.database = Some(database),
        Err(error) => report.database_error = Some(format!("{error:#}")),
    }
    Ok(report)
}

/// What a backup of this node would change here; nothing is changed.
pub(super) fn plan_of(home: &Home, db: &Db, document: &NodeDocument) -> Result<Plan> {
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

fn options(args: &ClusterRestoreArgs) -> Options {
    Options {
        sections: args.kind.map(Section::from).into_iter().collect(),
        maps: args.map.clone(),
        to_new_hardware: args.to_new_hardware,
        force: args.force,
        create_volumes: args.create_volumes,
        start_guests: args.start_guests,
    }
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

/// Told before the node is touched, not after.
fn refuse_to_replace(db: &Db, force: bool) -> Result<()> {
    let rows = db.dump(&mut std::io::sink())?.rows();
    if rows > 0 && !force {
        bail!(
            "{} holds {rows} rows: nothing was changed; give --skip-database to restore the node \
             only, or --force to replace them too (a copy of them is kept)",
            db.place()
        );
    }
    Ok(())
}

/// Asks on a terminal; elsewhere --yes says it.
fn confirm(node: bool, database: bool) -> Result<()> {
    let what = match (node, database) {
        (true, true) => "this node, then the database",
        (true, false) => "this node",
        (false, _) => "the database",
    };
    if !std::io::stdin().is_terminal() {
        bail!(
            "nothing was changed: nobody can be asked here; look at the plan, then give --yes to \
             restore {what}"
        );
    }
    eprint!("Restore {what}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}

/// A backup of the cluster as it is now; of this host alone where it is no node yet.
fn keep_what_is_there(home: &Home, ui: &Ui, db: &Db, live: &NodeDocument) -> Result<PathBuf> {
    let folder = home.cluster_dir()?.join("before-restore");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let is_node = Identity::of(home)?.is_some();
    if is_node && db.run(async |catalog| catalog.cluster().await)?.is_some() {
        let args = ClusterBackupArgs {
            output: Some(folder),
            require_all: false,
            node_timeout: SAFETY_NODE_TIMEOUT_S,
            keep: None,
        };
        let report = backup(home, ui, &args).context("cannot back up what is there now")?;
        return Ok(report.file);
    }
    let format = format_description!("[year][month][day]T[hour][minute][second].[subsecond]");
    let name = OffsetDateTime::now_utc().format(&format)?;
    let file = folder.join(format!("{}-{name}.xml", live.name));
    write_private(&file, live.to_xml()?.as_bytes())?;
    Ok(file)
}
