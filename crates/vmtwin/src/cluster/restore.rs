//! The database of a backup comes back: checked as a whole first, loaded in one transaction, and
//! what it replaces is kept.

use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_catalog::{DumpSummary, Node};
use vmtwin_cluster::{Archive, EntryPath};

use super::backup::refuse_other_cluster;
use crate::command::catalog::{dropped_deletions, make_way};
use crate::db::Db;
use crate::failpoint;
use crate::home::Home;

/// What a restore did.
#[derive(Debug, Serialize)]
pub(crate) struct RestoreReport {
    /// The database that was restored.
    pub(crate) database: String,
    /// What it held before, in a copy.
    pub(crate) copy: Option<String>,
    /// What it holds now, counted and hashed.
    pub(crate) content: DumpSummary,
    /// Whether it held exactly that before.
    pub(crate) unchanged: bool,
    /// What is to be looked at now.
    pub(crate) warnings: Vec<String>,
}

/// Restores the database. May be repeated.
pub(crate) fn restore_database(home: &Home, file: &Path, force: bool) -> Result<RestoreReport> {
    let mut archive = Archive::open(file)?;
    archive.verify()?;
    if archive.manifest().database.is_none() {
        bail!("{} holds no database", file.display());
    }
    let db = Db::open(home)?;
    refuse_other_cluster(&db, &archive)?;
    let before = db.dump(&mut std::io::sink())?;
    let nodes_before = db.run(async |catalog| catalog.nodes().await)?;
    let copy = make_way(home, &db, &before, force)?;
    let mut from = BufReader::new(archive.reader(&EntryPath::Database)?);
    failpoint::pass("cluster-database")?;
    let loaded = db
        .load(&mut from, &home.run_dir()?, force)
        .context("the database was not changed")?;
    failpoint::pass("cluster-database-loaded")?;
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    let mut warnings = changed_nodes(&nodes_before, &nodes);
    warnings.extend(dropped_deletions(&loaded));
    Ok(RestoreReport {
        warnings,
        database: db.place(),
        copy,
        unchanged: before == loaded.content,
        content: loaded.content,
    })
}

/// Who is a node by the restored database and was none before, or the other way round: a node that was
/// removed since the backup has a certificate that counts again.
fn changed_nodes(before: &[Node], now: &[Node]) -> Vec<String> {
    if before.is_empty() {
        return Vec::new();
    }
    let missing = |node: &&Node, from: &[Node]| !from.iter().any(|other| other.id == node.id);
    let back = now.iter().filter(|node| missing(node, before));
    let back = back.map(|node| {
        let name = &node.name;
        format!(
            "{name} is a node again, and was none before this restore; if it was put out: vmtwin \
             cluster node remove {name}"
        )
    });
    let gone = before.iter().filter(|node| missing(node, now));
    let gone = gone.map(|node| {
        let name = &node.name;
        format!("{name} joined after this backup, and is no node now; let it join again")
    });
    back.chain(gone).collect()
}
