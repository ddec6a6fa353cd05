//! The database of a backup comes back: checked as a whole first, loaded in one transaction, and
//! what it replaces is kept.

use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_catalog::DumpSummary;
use vmtwin_cluster::{Archive, EntryPath};

use super::backup::refuse_other_cluster;
use crate::command::catalog::make_way;
use crate::db::Db;
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
    let copy = make_way(home, &db, &before, force)?;
    let mut from = BufReader::new(archive.reader(&EntryPath::Database)?);
    let content = db
        .load(&mut from, &home.run_dir()?)
        .context("the database was not changed")?;
    Ok(RestoreReport {
        database: db.place(),
        copy,
        unchanged: before == content,
        content,
    })
}
