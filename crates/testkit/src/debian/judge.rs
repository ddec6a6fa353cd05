//! In what state a Debian guest's disk is: whether its own system shut it down, and
//! which commits it holds.
//!
//! Nothing here is mounted. The disk is copied; the ext4 tools read the copy, and
//! PostgreSQL and SQLite are started on what they took out of it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Acks;
use super::programs::Programs;
use crate::disk::{DiskFormat, copy_to_raw};
use crate::ext4::{self, Superblock};
use crate::process::Workdir;

const SHUT_DOWN: &str = "shut down";
/// Nothing, if a number before the last one is missing.
const LAST_NUMBER: &str = "SELECT max(n) AS last FROM ledger HAVING count(*) = max(n)";

/// What was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The superblock says `clean`.
    pub fs_clean: bool,
    /// The file system's journal has to be replayed.
    pub needs_recovery: bool,
    /// A full check finds nothing to mend, after the journal's replay if one is needed.
    pub fsck_ok: bool,
    /// The cluster's state in `pg_control`, such as `shut down` or `in production`;
    /// empty if there is none.
    pub pg_state: String,
    /// PostgreSQL's log ends with the end of a shutdown.
    pub pg_shutdown_logged: bool,
    /// PostgreSQL, started on a copy, says that it was not shut down and recovers.
    pub pg_recovery_at_start: bool,
    /// The last number in PostgreSQL's ledger, if it starts and 1, 2, 3, … are there
    /// without a gap.
    pub pg_last_commit: Option<u64>,
    /// SQLite has left neither a journal nor a write-ahead log.
    pub sqlite_closed: bool,
    /// SQLite's own check finds no fault.
    pub sqlite_ok: bool,
    /// The last number in SQLite's ledger, if it can be read and has no gap.
    pub sqlite_last: Option<u64>,
}

impl Judgement {
    /// What speaks against a shutdown in order, in words; empty when all is well.
    pub fn faults(&self) -> Vec<String> {
        let faults = [
            (!self.fs_clean, "the file system is not clean".to_owned()),
            (
                self.needs_recovery,
                "the journal has to be replayed".to_owned(),
            ),
            (!self.fsck_ok, "the file system is damaged".to_owned()),
            (
                self.pg_state != SHUT_DOWN,
                format!("PostgreSQL is '{}'", self.pg_state),
            ),
            (
                !self.pg_shutdown_logged,
                "PostgreSQL's log does not end with a shutdown".to_owned(),
            ),
            (
                self.pg_recovery_at_start,
                "PostgreSQL has to recover".to_owned(),
            ),
            (
                self.pg_last_commit.is_none(),
                "PostgreSQL's ledger is not whole".to_owned(),
            ),
            (
                !self.sqlite_closed,
                "SQLite's file was not closed".to_owned(),
            ),
            (!self.sqlite_ok, "SQLite's file is damaged".to_owned()),
            (
                self.sqlite_last.is_none(),
                "SQLite's ledger is not whole".to_owned(),
            ),
        ];
        let true_ones = faults.into_iter().filter(|(is_true, _)| *is_true);
        true_ones.map(|(_, words)| words).collect()
    }

    /// Panics unless the guest's own system shut everything down.
    pub fn assert_orderly(&self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "no shutdown in order: {faults:#?}");
    }

    /// Panics unless both ledgers are whole and hold what was acknowledged.
    pub fn assert_holds(&self, acknowledged: Acks) {
        let holds = self.pg_last_commit >= Some(acknowledged.postgres)
            && self.sqlite_last >= Some(acknowledged.sqlite);
        assert!(holds, "{acknowledged:?} was acknowledged; found: {self:#?}");
    }
}

/// Judges the disk of a Debian guest: a raw image, or a qcow2 one if its name ends
/// so. The image is not changed.
pub fn judge(disk: impl AsRef<Path>) -> Judgement {
    let disk = disk.as_ref();
    let work = Workdir::new();
    let raw = work.join("copy.raw");
    copy_to_raw(disk.as_os_str(), DiskFormat::of_path(disk), &raw);
    let found = Superblock::read(&raw);
    if found.needs_recovery {
        ext4::replay_journal(&raw);
    }
    let fsck_ok = ext4::is_sound(&raw);
    let programs = Programs::copy_to(&work);
    let postgres = judge_postgres(&raw, &work, &programs);
    let sqlite = judge_sqlite(&raw, &work, &programs);
    Judgement {
        fs_clean: found.clean,
        needs_recovery: found.needs_recovery,
        fsck_ok,
        pg_state: postgres.state,
        pg_shutdown_logged: postgres.shutdown_logged,
        pg_recovery_at_start: postgres.recovery_at_start,
        pg_last_commit: postgres.last_commit,
        sqlite_closed: sqlite.closed,
        sqlite_ok: sqlite.ok,
        sqlite_last: sqlite.last,
    }
}

struct Postgres {
    state: String,
    shutdown_logged: bool,
    recovery_at_start: bool,
    last_commit: Option<u64>,
}

fn judge_postgres(raw: &Path, work: &Workdir, programs: &Programs) -> Postgres {
    let log = ext4::extract(raw, "/var/log/postgresql", &work.join("log"));
    let version = only_entry(&ext4::extract(
        raw,
        "/var/lib/postgresql",
        &work.join("lib"),
    ));
    let data = version.join("main");
    let state = cluster_state(&programs.control_data(&data));
    // Of a machine that is gone; its process id may be in use on this one.
    let _ = fs::remove_file(data.join("postmaster.pid"));
    // The guest's settings are not needed, but a file of them is.
    let settings = fs::write(data.join("postgresql.conf"), "");
    settings.expect("writing settings for PostgreSQL");
    let answer = programs.query_postgres(&data, LAST_NUMBER);
    let last_commit = single_user_value(&answer.text, "last");
    if last_commit.is_none() {
        eprintln!("testkit: PostgreSQL told no number: {}", answer.log);
    }
    Postgres {
        state,
        shutdown_logged: ends_with_shutdown(&read(&only_entry(&log))),
        recovery_at_start: answer.log.contains("was not properly shut down"),
        last_commit,
    }
}

struct Sqlite {
    closed: bool,
    ok: bool,
    last: Option<u64>,
}

fn judge_sqlite(raw: &Path, work: &Workdir, programs: &Programs) -> Sqlite {
    let folder = ext4::extract(raw, "/var/lib/vmtwin", &work.join("sqlite"));
    let is_left = |name| fs::metadata(folder.join(name)).is_ok_and(|file| file.len() > 0);
    let closed = !is_left("ledger.sqlite-wal") && !is_left("ledger.sqlite-journal");
    let sql = format!("PRAGMA integrity_check; {LAST_NUMBER};");
    let answer = programs.query_sqlite(&folder.join("ledger.sqlite"), &sql);
    let mut lines = answer.text.lines();
    Sqlite {
        closed,
        ok: lines.next() == Some("ok"),
        last: lines.next().and_then(|line| line.parse().ok()),
    }
}

/// The one file or folder in a folder, such as that of PostgreSQL's version.
fn only_entry(folder: &Path) -> PathBuf {
    let mut entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let first = entries.next().map(|entry| entry.path());
    first.unwrap_or_else(|| folder.join("missing"))
}

fn read(file: &Path) -> String {
    fs::read(file).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

fn cluster_state(control_data: &str) -> String {
    let mut lines = control_data.lines();
    let state = lines.find_map(|line| line.strip_prefix("Database cluster state:"));
    state.unwrap_or("").trim().to_owned()
}

fn ends_with_shutdown(log: &str) -> bool {
    let last = log.lines().rfind(|line| !line.trim().is_empty());
    last.is_some_and(|line| line.ends_with("database system is shut down"))
}

/// A column in what PostgreSQL's single-user mode prints: `1: last = "7" (typeid = …`.
fn single_user_value(text: &str, column: &str) -> Option<u64> {
    let (_, rest) = text.split_once(&format!(" {column} = \""))?;
    rest.split('"').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orderly() -> Judgement {
        Judgement {
            fs_clean: true,
            needs_recovery: false,
            fsck_ok: true,
            pg_state: SHUT_DOWN.to_owned(),
            pg_shutdown_logged: true,
            pg_recovery_at_start: false,
            pg_last_commit: Some(7),
            sqlite_closed: true,
            sqlite_ok: true,
            sqlite_last: Some(6),
        }
    }

    fn acks(postgres: u64, sqlite: u64) -> Acks {
        Acks { postgres, sqlite }
    }

    #[test]
    fn every_fault_is_told() {
        orderly().assert_orderly();
        orderly().assert_holds(acks(7, 5));
        let worst = Judgement {
            fs_clean: false,
            needs_recovery: true,
            fsck_ok: false,
            pg_state: "in production".to_owned(),
            pg_shutdown_logged: false,
            pg_recovery_at_start: true,
            pg_last_commit: None,
            sqlite_closed: false,
            sqlite_ok: false,
            sqlite_last: None,
        };
        assert_eq!(worst.faults().len(), 10);
    }

    #[test]
    #[should_panic(expected = "was acknowledged")]
    fn a_lost_commit_of_sqlite_is_told() {
        orderly().assert_holds(acks(7, 7));
    }

    #[test]
    #[should_panic(expected = "was acknowledged")]
    fn a_ledger_with_a_gap_holds_nothing() {
        let torn = Judgement {
            pg_last_commit: None,
            ..orderly()
        };
        torn.assert_holds(acks(0, 0));
    }

    #[test]
    fn what_programs_print_is_understood() {
        let control = "pg_control version number:            1300\n\
                       Database cluster state:               in production\n";
        assert_eq!(cluster_state(control), "in production");
        assert_eq!(cluster_state(""), "");
        let answer = "backend> \t 1: last\t(typeid = 20)\n\t----\n\
                      \t 1: last = \"1234\"\t(typeid = 20)\n\t----\n";
        assert_eq!(single_user_value(answer, "last"), Some(1234));
        assert_eq!(single_user_value("backend> \t----\n", "last"), None);
    }

    #[test]
    fn a_log_must_end_with_the_shutdown() {
        let shut =
            "12:00 [1] LOG:  shutting down\n12:01 [1] LOG:  database system is shut down\n\n";
        assert!(ends_with_shutdown(shut));
        assert!(!ends_with_shutdown(&format!(
            "{shut}12:02 [9] LOG:  starting\n"
        )));
        assert!(!ends_with_shutdown(""));
    }
}
