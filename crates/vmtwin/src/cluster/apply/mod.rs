//! The restore of a cluster: plan each node, show, ask, keep what is there, apply on all nodes side
//! by side, and the database last.
//!
//! ```text
//!   archive ─► choose ─► this host: document, live ─► plan ─┐                        ┌─► steps here
//!                  └───► agents: document ─► their plans ───┴─► shown ─► yes? ─► kept┴─► agents' steps ─► database
//! ```
//! There is no file of progress: a second run makes new plans, which hold what is not done yet.

mod choose;
mod hardware;
pub(super) mod host;
mod live;
mod remote;
mod report;
pub(super) mod steps;
pub(super) mod wire;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use vmtwin_cluster::plan::{Options, Section};
use vmtwin_cluster::{Archive, NodeDocument, NodeName};

use choose::{Place, Target};
use host::Prepared;
pub(super) use report::Outcome;
pub(crate) use report::{ClusterRestoreReport, NodeRestoreReport};

use super::backup::{backup, refuse_other_cluster};
use super::cli::{ClusterBackupArgs, ClusterRestoreArgs};
use super::node::Identity;
use super::restore::restore_database;
use super::secrets::{Opened, Opening};
use super::validate::read_node;
use crate::db::Db;
use crate::home::Home;
use crate::ui::Ui;

/// How long another node may take to give its part of the backup made before a restore, seconds.
const SAFETY_NODE_TIMEOUT_S: u64 = 30;

/// A node on its way through a restore.
struct Job {
    target: Target,
    report: NodeRestoreReport,
    /// What would be done here; of other hosts their agents keep it.
    prepared: Option<Prepared>,
    /// What an agent is asked.
    order: Option<remote::Asked>,
}

/// Restores nodes, and then the database. May be repeated.
pub(crate) fn restore(
    home: &Home,
    ui: &Ui,
    args: &ClusterRestoreArgs,
) -> Result<ClusterRestoreReport> {
    let mut archive = Archive::open(&args.file)?;
    archive.verify()?;
    let db = Db::open(home)?;
    refuse_other_cluster(&db, &archive)?;
    let rows = db.run(async |catalog| catalog.nodes().await)?;
    let targets = choose::choose(home, &rows, &archive, args)?;
    let opening = Opening::of(&args.open, &mut archive)?;
    let with_database =
        !args.skip_database && args.kind.is_none() && archive.manifest().database.is_some();
    if with_database && !args.dry_run {
        refuse_to_replace(&db, args.force)?;
    }
    let options = options(args);
    let mut source = Source {
        archive: &mut archive,
        opening,
    };
    let mut jobs = planned(home, ui, &db, &mut source, targets, &options)?;
    refuse_if_none(&jobs)?;
    let mut report = ClusterRestoreReport {
        dry_run: args.dry_run,
        nodes: Vec::new(),
        safety_backup: None,
        database: None,
        database_error: None,
    };
    show(ui, &jobs);
    let to_do = jobs.iter().any(|job| job.report.has_work());
    if !args.dry_run && (to_do || with_database) && !args.yes {
        confirm(&jobs, with_database)?;
    }
    if to_do && !args.dry_run {
        let copy = keep_what_is_there(home, ui, &db, &jobs)?;
        ui.note(&format!("before: {}", copy.display()));
        for prepared in jobs.iter().filter_map(|job| job.prepared.as_ref()) {
            if let Some(file) = host::keep_secrets(home, prepared)? {
                ui.note(&format!("secrets before: {}", file.display()));
            }
        }
        report.safety_backup = Some(copy);
        apply(home, ui, options.force, &mut jobs)?;
    }
    let adopted = jobs.iter().find(|job| job.target.is_adopted());
    let adopted = adopted.map(|job| job.target.identity()).transpose()?;
    report.nodes = jobs.into_iter().map(|job| job.report).collect();
    if args.dry_run || report.is_failed() || args.kind.is_some() {
        return Ok(report);
    }
    let is_known = |identity: &Identity| rows.iter().any(|row| row.id == identity.id);
    if let Some(identity) = adopted.filter(|identity| with_database || is_known(identity)) {
        take_place(home, &identity)?;
    }
    if !with_database {
        return Ok(report);
    }
    // Its connection would hold the catalog while it is replaced.
    drop(db);
    match restore_database(home, &args.file, true) {
        Ok(database) => report.database = Some(database),
        Err(error) => report.database_error = Some(format!("{error:#}")),
    }
    Ok(report)
}

/// Makes this host the node whose place it takes, with the database that was named for it.
fn take_place(home: &Home, identity: &Identity) -> Result<()> {
    identity.keep(home)?;
    match home.database()? {
        Some(url) => home.keep_database(Some(&url)),
        None => Ok(()),
    }
}

/// A backup, and what opens its secrets.
struct Source<'a> {
    archive: &'a mut Archive,
    opening: Option<Opening>,
}

impl Source<'_> {
    fn node(&mut self, name: &NodeName) -> Result<(NodeDocument, Option<Opened>)> {
        let document = read_node(self.archive, name)?;
        let mut nodes = self.archive.manifest().nodes.iter();
        let node = nodes.find(|node| node.name == *name).cloned();
        let opened = match (&self.opening, node) {
            (Some(opening), Some(node)) => opening.node(self.archive, &node)?,
            _ => None,
        };
        Ok((document, opened))
    }
}

/// The plans of all nodes; nothing is changed.
fn planned(
    home: &Home,
    ui: &Ui,
    db: &Db,
    source: &mut Source<'_>,
    targets: Vec<Target>,
    options: &Options,
) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for target in targets {
        let mut job = Job {
            report: NodeRestoreReport::of(target.name.as_str(), target.onto.clone()),
            target,
            prepared: None,
            order: None,
        };
        match &job.target.place {
            Place::Nowhere(why) => job.report.not_reached = Some(why.clone()),
            Place::Here { .. } => match source.node(&job.target.name) {
                Ok((document, secrets)) => {
                    let (node, adopted) = ((&document, secrets), job.target.is_adopted());
                    let prepared = host::prepare((home, db), node, adopted, options)?;
                    job.report.outcome = Outcome::before(&prepared.plan);
                    job.report.plan = Some(prepared.plan.clone());
                    job.prepared = Some(prepared);
                }
                Err(error) => job.report.not_reached = Some(format!("{error:#}")),
            },
            Place::Agent { id, address } => match source.node(&job.target.name) {
                Ok((document, secrets)) => {
                    let node = (document.to_xml()?, secrets);
                    job.order = Some(remote::Asked::new(id, address, node, options)?);
                }
                Err(error) => job.report.not_reached = Some(format!("{error:#}")),
            },
        }
        jobs.push(job);
    }
    remote::plan(home, ui, &mut jobs)?;
    Ok(jobs)
}

/// Fails where not one node can be looked at: then nothing can be shown, and nothing done.
fn refuse_if_none(jobs: &[Job]) -> Result<()> {
    if jobs.iter().any(|job| job.report.plan.is_some()) {
        return Ok(());
    }
    let why = jobs.iter().map(|job| {
        let why = job.report.not_reached.as_deref();
        format!("{}: {}", job.report.node, why.unwrap_or("no plan"))
    });
    let why: Vec<String> = why.collect();
    bail!("nothing was changed: {}", why.join("; "))
}

fn show(ui: &Ui, jobs: &[Job]) {
    for job in jobs {
        let report = &job.report;
        match (&report.plan, &report.not_reached) {
            (Some(plan), _) => match &report.onto {
                Some(onto) => ui.note(&format!("on {onto}: {plan}")),
                None => ui.note(&plan.to_string()),
            },
            (None, Some(why)) => ui.note(&format!("node {}\n  NOT restored: {why}", report.node)),
            (None, None) => {}
        }
    }
}

/// Does what was agreed to, on all nodes side by side. What fails on one does not end others.
fn apply(home: &Home, ui: &Ui, force: bool, jobs: &mut [Job]) -> Result<()> {
    let (mut here, mut there): (Vec<_>, Vec<_>) = jobs
        .iter_mut()
        .filter(|job| job.report.has_work())
        .partition(|job| job.prepared.is_some());
    thread::scope(|scope| {
        // One at most: a host is one node.
        let local = scope.spawn(move || {
            for job in &mut here {
                apply_here(home, ui, force, job);
            }
        });
        let done = remote::apply(home, ui, &mut there);
        local.join().map_err(|_| anyhow!("the restore panicked"))?;
        done
    })
}

fn apply_here(home: &Home, ui: &Ui, force: bool, job: &mut Job) {
    let Some(prepared) = &job.prepared else {
        return;
    };
    let spinner = ui.spinner(&format!("restoring {}", job.report.node));
    let progress = |_: usize, what: &str| spinner.set_message(what.to_owned());
    let outcome = &mut job.report.outcome;
    let done = steps::apply(home, prepared, force, &progress, outcome);
    spinner.finish_and_clear();
    job.report.error = done.err().map(|error| format!("{error:#}"));
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

/// Told before a node is touched, not after.
fn refuse_to_replace(db: &Db, force: bool) -> Result<()> {
    let rows = db.dump(&mut std::io::sink())?.rows();
    if rows > 0 && !force {
        bail!(
            "{} holds {rows} rows: nothing was changed; give --skip-database to restore the nodes \
             only, or --force to replace them too (a copy of them is kept)",
            db.place()
        );
    }
    Ok(())
}

/// Asks on a terminal; elsewhere --yes says it.
fn confirm(jobs: &[Job], database: bool) -> Result<()> {
    let nodes = jobs.iter().filter(|job| job.report.has_work());
    let mut what: Vec<&str> = nodes.map(|job| job.report.node.as_str()).collect();
    if database {
        what.push("then the database");
    }
    let what = what.join(", ");
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
fn keep_what_is_there(home: &Home, ui: &Ui, db: &Db, jobs: &[Job]) -> Result<PathBuf> {
    let is_node = Identity::of(home)?.is_some();
    if is_node && db.run(async |catalog| catalog.cluster().await)?.is_some() {
        let args = ClusterBackupArgs {
            output: Some(host::safety_folder(home)?),
            require_all: false,
            node_timeout: SAFETY_NODE_TIMEOUT_S,
            keep: None,
            label: None,
            with_secrets: false,
            secrets_passphrase_file: None,
        };
        let report = backup(home, ui, &args).context("cannot back up what is there now")?;
        return Ok(report.file);
    }
    let live: Option<&NodeDocument> = jobs
        .iter()
        .find_map(|job| Some(&job.prepared.as_ref()?.live));
    host::keep_live(home, live.context("this host has no configuration")?)
}
