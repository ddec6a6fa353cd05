//! The restore of a cluster: plan each node, show, ask, keep what is there, apply on all nodes side
//! by side, and the database last.
//!
//! ```text
//!   archive ─► choose ─► this host: document, live ─► plan ─┐                        ┌─► steps here
//!                  └───► agents: document ─► their plans ───┴─► shown ─► yes? ─► kept┴─► agents' steps ─► database
//! ```
//! There is no file of progress: a second run makes new plans, which hold what is not done yet.

mod choose;
mod database;
mod hardware;
pub(super) mod host;
mod live;
mod remote;
mod report;
pub(super) mod source;
pub(super) mod steps;
pub(super) mod wire;

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use vmtwin_cluster::plan::{Options, Section};
use vmtwin_cluster::{Archive, NodeDocument};

use choose::{Place, Target};
pub(super) use database::DatabasePlan;
use host::Prepared;
pub(super) use report::Outcome;
pub(crate) use report::{ClusterRestoreReport, NodeRestoreReport};
use source::Source;

use super::backup::{backup, refuse_other_cluster};
use super::cli::{ClusterBackupArgs, ClusterRestoreArgs};
use super::membership;
use super::node::Identity;
use super::restore::RestoreReport;
use super::secrets::Opening;
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
    // Before anything is done: the key may be the wrong one.
    let opening = Opening::of(&args.open, &mut archive)?;
    let mut report = ClusterRestoreReport::new(args.dry_run);
    report.database_plan = match args.skip_database || args.kind.is_some() {
        true => None,
        false => DatabasePlan::of(&db, &mut archive)?,
    };
    drop(db);
    // One that is what it was needs nothing.
    let plan = report.database_plan.clone();
    let mut database = plan.filter(|database| !database.is_same());
    if let Some(lost) = database.take_if(|database| comes_first(home, &archive, database, args)) {
        report.database = Some(lost_database(home, ui, &lost, args)?);
    }
    let is_restored = report.database.is_some();
    let run = Run {
        home,
        ui,
        args,
        database,
    };
    run.nodes_first(&mut archive, opening, report)
        .map_err(|error| match is_restored {
            true => {
                error.context("the database was restored before this; go on with --skip-database")
            }
            false => error,
        })
}

/// A restore of nodes, and of the database where that comes last.
struct Run<'a> {
    home: &'a Home,
    ui: &'a Ui,
    args: &'a ClusterRestoreArgs,
    database: Option<DatabasePlan>,
}

impl Run<'_> {
    fn nodes_first(
        self,
        archive: &mut Archive,
        opening: Option<Opening>,
        mut report: ClusterRestoreReport,
    ) -> Result<ClusterRestoreReport> {
        let Run { home, ui, args, .. } = self;
        let db = Db::open(home)?;
        let rows = db.run(async |catalog| catalog.nodes().await)?;
        let targets = choose::choose(home, &rows, archive, args)?;
        let may_replace = args.force || args.replace_database;
        if let Some(database) = self.database.as_ref().filter(|_| !args.dry_run) {
            database.refuse_to_replace(&db, may_replace)?;
        }
        let options = options(args);
        let mut source = Source::of(archive, opening)?;
        let mut jobs = planned(home, ui, &db, &mut source, targets, &options)?;
        refuse_if_none(&jobs)?;
        show(ui, &jobs);
        if let Some(database) = report
            .database_plan
            .as_ref()
            .filter(|_| report.database.is_none())
        {
            ui.note(&database.to_string());
        }
        let has_database = self.database.is_some() || report.database.is_some();
        let adopted = adopted(&jobs, &rows, has_database, args)?;
        if !args.dry_run {
            let to_do = jobs.iter().any(|job| job.report.has_work());
            if (to_do || self.database.is_some()) && !args.yes {
                confirm(&jobs, self.database.is_some())?;
            }
            let nodes = (&mut source, &mut jobs[..], &options);
            report.safety_backup = self.carry_out(&db, nodes, adopted.as_ref())?;
        }
        report.nodes = jobs.into_iter().map(|job| job.report).collect();
        if args.dry_run || args.kind.is_some() {
            return Ok(report);
        }
        if report.is_failed() {
            let why = "its turn did not come: it is restored last, when nothing has failed";
            report.database_error = self.database.map(|_| why.to_owned());
            return Ok(report);
        }
        if let Some(identity) = &adopted {
            keep_its_database(home)?;
            report.warnings.extend(without_certificate(home, identity)?);
        }
        // Its connection would hold the catalog while it is replaced.
        drop(db);
        let database = self.database.as_ref();
        match database.map(|database| database.restore(home, &args.file, may_replace)) {
            Some(Ok(database)) => report.database = Some(database),
            Some(Err(error)) => report.database_error = Some(format!("{error:#}")),
            None => {}
        }
        Ok(report)
    }

    /// Keeps what is there, and does what was agreed to on all nodes; where the copy is.
    fn carry_out(
        &self,
        db: &Db,
        (source, jobs, options): (&mut Source<'_>, &mut [Job], &Options),
        adopted: Option<&Identity>,
    ) -> Result<Option<PathBuf>> {
        let Run { home, ui, .. } = *self;
        let mut copy = None;
        if jobs.iter().any(|job| job.report.has_work()) {
            copy = Some(keep_what_is_there(home, ui, db, jobs)?);
            // By that backup it is known of all nodes what they have now.
            refuse_if_changed(home, db, source, jobs, options)?;
        }
        for job in jobs.iter() {
            let Some(prepared) = &job.prepared else {
                continue;
            };
            if job.report.has_work()
                && let Some(file) = host::keep_secrets(home, prepared)?
            {
                ui.note(&format!("secrets before: {}", file.display()));
            }
            if let Some(identity) = adopted {
                take_place(home, prepared, identity)?;
            }
        }
        apply(home, ui, options.force, jobs)?;
        Ok(copy)
    }
}

/// The node that this host becomes: it is to be in the database, by now or at the end, and a part of a
/// node is not the node.
fn adopted(
    jobs: &[Job],
    rows: &[vmtwin_catalog::Node],
    has_database: bool,
    args: &ClusterRestoreArgs,
) -> Result<Option<Identity>> {
    let adopted = jobs.iter().find(|job| job.target.is_adopted());
    let Some(job) = adopted.filter(|_| args.kind.is_none()) else {
        return Ok(None);
    };
    let identity = job.target.identity()?;
    let is_known = rows.iter().any(|row| row.id == identity.id);
    Ok((has_database || is_known).then_some(identity))
}

/// Whether the database is restored before the nodes: it holds nothing, so that nothing is replaced,
/// and without it no other node's agent lets this one in.
fn comes_first(
    home: &Home,
    archive: &Archive,
    database: &DatabasePlan,
    args: &ClusterRestoreArgs,
) -> bool {
    let is_node = matches!(Identity::of(home), Ok(Some(_)));
    let has_others = args.node.is_none() && archive.manifest().nodes.len() > 1;
    database.is_lost() && is_node && has_others && !args.dry_run
}

fn lost_database(
    home: &Home,
    ui: &Ui,
    database: &DatabasePlan,
    args: &ClusterRestoreArgs,
) -> Result<RestoreReport> {
    ui.note(&format!(
        "{database}\nIt was lost, and is restored before the nodes: without it their agents let nobody in."
    ));
    if !args.yes {
        agree("the database, and then look at the nodes")?;
    }
    database.restore(home, &args.file, false)
}

/// Makes this host the node whose place it takes: before its steps, so that what is cut off goes on as
/// that node. The certificate of the one that it was is put aside.
fn take_place(home: &Home, prepared: &Prepared, identity: &Identity) -> Result<()> {
    if let Some(left) = &prepared.leaves {
        membership::put_certificate_aside(home, left)?;
    }
    identity.keep(home)
}

/// Keeps the database that was named for a host that became a node.
fn keep_its_database(home: &Home) -> Result<()> {
    match home.database()? {
        Some(url) => home.keep_database(Some(&url)),
        None => Ok(()),
    }
}

/// What to do where this host has become a node, and cannot show that it is.
fn without_certificate(home: &Home, identity: &Identity) -> Result<Option<String>> {
    let has_one = membership::credentials(home)?.is_some();
    let name = &identity.name;
    Ok((!has_one).then(|| {
        format!(
            "this host is {name} now, and has no certificate: on the node that has the cluster's \
             authority, vmtwin cluster node remove {name} and vmtwin cluster token; then here: vmtwin \
             cluster join TOKEN"
        )
    }))
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
            Place::Here { .. } => match prepare_here(home, db, source, &job.target, options) {
                Ok(prepared) => {
                    job.report.outcome = Outcome::before(&prepared.plan);
                    job.report.plan = Some(prepared.plan.clone());
                    job.prepared = Some(prepared);
                }
                Err(error) => job.report.not_reached = Some(format!("{error:#}")),
            },
            Place::Agent { id, address } => match source.node(&job.target.name, options) {
                Ok((document, secrets, options)) => {
                    let node = (document.to_xml()?, secrets);
                    job.order = Some(remote::Asked::new(id, address, node, &options)?);
                }
                Err(error) => job.report.not_reached = Some(format!("{error:#}")),
            },
        }
        jobs.push(job);
    }
    remote::plan(home, ui, &mut jobs)?;
    Ok(jobs)
}

/// What would be done on this host.
fn prepare_here(
    home: &Home,
    db: &Db,
    source: &mut Source<'_>,
    target: &Target,
    options: &Options,
) -> Result<Prepared> {
    let (document, secrets, options) = source.node(&target.name, options)?;
    let node = (&document, secrets);
    host::prepare((home, db), node, target.is_adopted(), &options)
}

/// Fails if this host is not as it was when its plan was shown: a guest may be on another node since.
/// Agents look themselves before they begin.
fn refuse_if_changed(
    home: &Home,
    db: &Db,
    source: &mut Source<'_>,
    jobs: &mut [Job],
    options: &Options,
) -> Result<()> {
    for job in jobs.iter_mut().filter(|job| job.prepared.is_some()) {
        let now = prepare_here(home, db, source, &job.target, options)?;
        if job.report.plan.as_ref() != Some(&now.plan) {
            bail!(
                "{} has changed since its plan was shown, or a guest of it is on another node: nothing \
                 was changed; run the same again and look at the plan\n{}",
                job.report.node,
                now.plan
            );
        }
        job.prepared = Some(now);
    }
    Ok(())
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
        elsewhere: BTreeMap::new(),
    }
}

/// Asks on a terminal; elsewhere --yes says it.
fn confirm(jobs: &[Job], database: bool) -> Result<()> {
    let nodes = jobs.iter().filter(|job| job.report.has_work());
    let mut what: Vec<&str> = nodes.map(|job| job.report.node.as_str()).collect();
    if database {
        what.push("then the database");
    }
    agree(&what.join(", "))
}

fn agree(what: &str) -> Result<()> {
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
