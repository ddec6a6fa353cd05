//! `vmtwin catalog`: what it holds, copies of it, and the move to a database that hosts share.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use vmtwin_catalog::{DumpSummary, Loaded, ProcessIdentity, is_postgres_url};

use crate::EXIT_WARNINGS;
use crate::cli::CatalogCommand;
use crate::db::Db;
use crate::home::Home;
use crate::ui::Ui;

/// Most jobs that a refusal names.
const MAX_JOBS: usize = 10;
/// The word for the file in the home folder.
const FILE: &str = "file";

/// What a command did.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The catalog: a file, or the URL of a database.
    catalog: String,
    /// Where the copy is, or what the catalog was before.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<String>,
    /// What it holds.
    #[serde(flatten)]
    content: DumpSummary,
    /// What is to be looked at now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Runs `vmtwin catalog …`; gives the exit code.
pub(crate) fn run(home: &Home, ui: &Ui, command: &CatalogCommand) -> Result<i32> {
    let (verb, report) = match command {
        CatalogCommand::Show => ("holds", show(home)?),
        CatalogCommand::Check => ("is whole", check(home)?),
        CatalogCommand::Dump { file } if file.as_os_str() == "-" => {
            Db::open(home)?.dump(&mut BufWriter::new(std::io::stdout()))?;
            return Ok(0);
        }
        CatalogCommand::Dump { file } => ("copied", dump(home, file)?),
        CatalogCommand::Load { file, force } => ("loaded", load(home, file, *force)?),
        CatalogCommand::Move { to, force } => ("moved here", move_to(home, to, *force)?),
    };
    ui.result(&report, || text(verb, &report))?;
    Ok(match report.warnings.is_empty() {
        true => 0,
        false => EXIT_WARNINGS,
    })
}

/// A database of the command line or of the environment. Passwords stay out of both: other users
/// see the one, and every child of ours the other.
pub(crate) fn database_url(text: &str) -> Result<String, String> {
    if !is_postgres_url(text) {
        return Err("a PostgreSQL database is postgres://USER@HOST/DATABASE".to_owned());
    }
    let authority = text.split("://").nth(1).unwrap_or_default();
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    if user.contains(':') || text.contains("password=") {
        return Err("leave the password out, and put it into PGPASSWORD or ~/.pgpass".to_owned());
    }
    Ok(text.to_owned())
}

/// Where a catalog may move.
pub(crate) fn place(text: &str) -> Result<String, String> {
    match text {
        FILE => Ok(FILE.to_owned()),
        url => database_url(url),
    }
}

fn show(home: &Home) -> Result<Report> {
    let db = Db::open(home)?;
    Ok(Report {
        catalog: db.place(),
        copy: None,
        content: db.dump(&mut std::io::sink())?,
        warnings: Vec::new(),
    })
}

fn check(home: &Home) -> Result<Report> {
    Db::open(home)?.run(async |catalog| catalog.check().await)?;
    show(home)
}

fn dump(home: &Home, file: &Path) -> Result<Report> {
    let db = Db::open(home)?;
    Ok(Report {
        catalog: db.place(),
        content: dump_to(&db, file)?,
        copy: Some(file.display().to_string()),
        warnings: Vec::new(),
    })
}

/// Under its name there is a whole copy or nothing. For this user alone: it may hold secrets.
fn dump_to(db: &Db, file: &Path) -> Result<DumpSummary> {
    let cannot = || format!("cannot write the copy {}", file.display());
    if file.exists() {
        bail!("{} exists; choose another name", file.display());
    }
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_copy(db, &partial)
        .and_then(|content| {
            // Unlike a rename, a link never replaces what came to be there meanwhile.
            std::fs::hard_link(&partial, file)?;
            Ok(content)
        })
        .with_context(cannot);
    let _ = std::fs::remove_file(&partial);
    written
}

fn write_copy(db: &Db, path: &Path) -> Result<DumpSummary> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut buffered = BufWriter::new(file);
    let content = db.dump(&mut buffered)?;
    buffered.flush()?;
    buffered.get_ref().sync_all()?;
    Ok(content)
}

fn load(home: &Home, file: &Path, force: bool) -> Result<Report> {
    let from = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let db = Db::open(home)?;
    let before = db.dump(&mut std::io::sink())?;
    let copy = make_way(home, &db, &before, force)?;
    let loaded = db
        .load(&mut BufReader::new(from), &home.run_dir()?, force)
        .with_context(|| format!("cannot load {}", file.display()))?;
    Ok(Report {
        catalog: db.place(),
        copy,
        warnings: dropped_deletions(&loaded).into_iter().collect(),
        content: loaded.content,
    })
}

/// Says so where deletions that waited in a copy were dropped.
pub(crate) fn dropped_deletions(loaded: &Loaded) -> Option<String> {
    let count = loaded.dropped_deletions;
    (count > 0).then(|| {
        format!(
            "{count} snapshots waited for their deletion when the copy was made; as that may have been \
             taken back since, none of them is deleted: forget them again where it is meant (vmtwin \
             snapshot forget)"
        )
    })
}

pub(super) fn move_to(home: &Home, to: &str, force: bool) -> Result<Report> {
    let from = Db::open(home)?;
    refuse_unfinished(&from, force)?;
    let url = (to != FILE).then_some(to);
    let target = match url {
        Some(url) => Db::open_database(home, url)?,
        None => Db::open_file(home)?,
    };
    if target.place() == from.place() {
        bail!("the catalog is in {} already", target.place());
    }
    let there = target.dump(&mut std::io::sink())?;
    // After a move that was cut off, what is there is what is here.
    let copy = match there == from.dump(&mut std::io::sink())? {
        true => None,
        false => make_way(home, &target, &there, force)?,
    };
    let content = from.move_to(&target, &home.run_dir()?, force)?;
    home.keep_database(url)?;
    Ok(Report {
        catalog: target.place(),
        copy,
        content,
        warnings: Vec::new(),
    })
}

/// A catalog holds the undos of jobs that run, and of those that were cut off: nobody else knows how to
/// set their guests right. With `force` jobs of hosts are passed over that are no node any more, or were
/// silent for the lease: they may be gone for good. To be called before anything is changed.
pub(crate) fn refuse_unfinished(db: &Db, force: bool) -> Result<()> {
    let jobs = db.run(async |c| c.unfinished_jobs(force).await)?;
    if jobs.is_empty() {
        return Ok(());
    }
    let here = ProcessIdentity::of_self()?.host;
    let told = jobs.iter().take(MAX_JOBS).map(|job| {
        let of = job.vm_name.as_deref();
        let of = of.map_or(String::new(), |vm| format!(" of {vm}"));
        format!("a {}{of} on {}", job.kind, job.owner.host)
    });
    let mut told: Vec<String> = told.collect();
    if jobs.len() > MAX_JOBS {
        told.push(format!("{} more", jobs.len() - MAX_JOBS));
    }
    let elsewhere = match jobs.iter().all(|job| job.owner.host == here) {
        true => String::new(),
        false => format!(
            ". If a host is gone for good: vmtwin cluster node remove NODE, or give --force, which \
             passes over hosts that are no node any more, or were silent for {} s",
            db.run(async |c| c.lease().await)?.as_secs()
        ),
    };
    bail!(
        "{}: not finished: {}; nothing was changed. Wait for them, or if they were cut off, run on \
         their hosts: vmtwin recover{elsewhere}",
        db.place(),
        told.join(", ")
    )
}

/// What a catalog holds is only replaced when asked for, and is kept in a copy.
pub(crate) fn make_way(
    home: &Home,
    db: &Db,
    content: &DumpSummary,
    force: bool,
) -> Result<Option<String>> {
    if content.rows() == 0 {
        return Ok(None);
    }
    refuse_unfinished(db, force)?;
    if !force {
        bail!(
            "{} holds {} rows; give --force to replace them (a copy of them is kept)",
            db.place(),
            content.rows()
        );
    }
    let format =
        format_description!("[year][month][day]T[hour][minute][second]-[subsecond digits:6]");
    let now = OffsetDateTime::now_utc().format(&format)?;
    let copy = home.dir().join(format!("catalog-before-{now}.jsonl"));
    dump_to(db, &copy)?;
    Ok(Some(copy.display().to_string()))
}

fn text(verb: &str, report: &Report) -> String {
    let mut lines = vec![format!(
        "{}: {verb}, schema {}, {} rows",
        report.catalog,
        report.content.schema,
        report.content.rows()
    )];
    for table in &report.content.tables {
        lines.push(format!("  {:12} {:>8}", table.table, table.rows));
    }
    if let Some(copy) = &report.copy {
        lines.push(format!("copy: {copy}"));
    }
    let warnings = report.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning: {warning}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_refused_wherever_it_is() {
        for url in [
            "postgres://u:secret@h/d",
            "postgres://u@h/d?password=secret",
            "postgres://u:p@ss@h:1/d",
        ] {
            let error = database_url(url).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        for url in ["postgres://u@h:5432/d", "postgresql:///d?host=/run/pg:1"] {
            assert_eq!(database_url(url).as_deref(), Ok(url));
        }
        assert!(database_url("mysql://u@h/d").is_err());
        assert!(place("file").is_ok());
    }
}
