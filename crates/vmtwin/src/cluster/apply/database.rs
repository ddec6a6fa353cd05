//! The database's part of a restore: what of it would be replaced, told before a node is touched, and
//! done when all nodes are.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vmtwin_catalog::DumpSummary;
use vmtwin_cluster::{Archive, EntryPath};

use super::super::restore::{RestoreReport, restore_database};
use crate::command::catalog::refuse_unfinished;
use crate::db::Db;
use crate::home::Home;

/// What a restore would do with the database.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DatabasePlan {
    /// Where it is: a file, or a URL without a password.
    pub(crate) database: String,
    /// Rows that it holds now.
    pub(crate) rows: u64,
    /// Rows that it would hold.
    pub(crate) rows_in_backup: u64,
    /// The schema of the backup's tables.
    pub(crate) schema_in_backup: i64,
    /// Tables that are not as they were, a line each.
    pub(crate) differences: Vec<String>,
}

impl DatabasePlan {
    /// Compares the database with a backup's, if that has one.
    pub(in crate::cluster) fn of(db: &Db, archive: &mut Archive) -> Result<Option<DatabasePlan>> {
        if archive.manifest().database.is_none() {
            return Ok(None);
        }
        let mut copy = BufReader::new(archive.reader(&EntryPath::Database)?);
        let then = DumpSummary::of(&mut copy).context("the backup's database cannot be read")?;
        let now = db.dump(&mut std::io::sink())?;
        Ok(Some(DatabasePlan {
            database: db.place(),
            rows: now.rows(),
            rows_in_backup: then.rows(),
            schema_in_backup: then.schema,
            differences: differences(&now, &then),
        }))
    }

    /// Whether it is what it was, to the last row.
    pub(crate) fn is_same(&self) -> bool {
        self.differences.is_empty()
    }

    /// Whether it holds nothing, and so was lost: no cluster has such a one.
    pub(super) fn is_lost(&self) -> bool {
        self.rows == 0
    }

    /// What it holds is replaced only where that was asked for. Told before a node is touched.
    pub(super) fn refuse_to_replace(&self, db: &Db, force: bool) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        refuse_unfinished(db, force)?;
        if !force {
            bail!(
                "{} holds {} rows: nothing was changed; give --skip-database to restore the nodes \
                 only, or --replace-database to replace them too (a copy of them is kept)",
                self.database,
                self.rows
            );
        }
        Ok(())
    }

    /// Restores it, if it still is the one that this was said of: a node's settings, which come back
    /// with its secrets, may name another.
    pub(super) fn restore(&self, home: &Home, file: &Path, force: bool) -> Result<RestoreReport> {
        let now = Db::open(home)?.place();
        if now != self.database {
            bail!(
                "the settings that came back name another database, {now}; nothing of it was looked \
                 at or changed: if it was lost, run the same with --only-database"
            );
        }
        restore_database(home, file, force)
    }
}

fn differences(now: &DumpSummary, then: &DumpSummary) -> Vec<String> {
    let by_name = |summary: &DumpSummary| -> BTreeMap<String, (u64, String)> {
        let tables = summary.tables.iter();
        let named = tables.map(|one| (one.table.clone(), (one.rows, one.sha256.clone())));
        named.collect()
    };
    let (mut old, new) = (by_name(now), by_name(then));
    let mut lines = Vec::new();
    if now.schema != then.schema {
        lines.push(format!("schema: {} -> {}", now.schema, then.schema));
    }
    for (table, then) in new {
        let now = old.remove(&table).unwrap_or_default();
        if now.0 != then.0 {
            lines.push(format!("{table}: {} -> {} rows", now.0, then.0));
        } else if now != then && then.0 > 0 {
            lines.push(format!("{table}: other rows"));
        }
    }
    // A schema may have more tables than an older one.
    let gone = old.into_iter().filter(|(_, (rows, _))| *rows > 0);
    lines.extend(gone.map(|(table, (rows, _))| format!("{table}: {rows} -> 0 rows")));
    lines
}

impl fmt::Display for DatabasePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database {}", self.database)?;
        if self.is_same() {
            return write!(f, ": same");
        }
        write!(
            f,
            ": {} rows now, {} in the backup",
            self.rows, self.rows_in_backup
        )?;
        for line in &self.differences {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}
