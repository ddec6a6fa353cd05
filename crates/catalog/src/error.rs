//! What can go wrong, and what to do next. `Display` leaves the source out: the chain is printed
//! once, at the edge.

use std::path::PathBuf;

use time::OffsetDateTime;

use crate::id::{JobId, StepId, TaskId};

/// An error of the catalog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name or the id of a new VM is taken.
    #[error(
        "a VM named {name:?} (or with the same id) is in the catalog already; choose another name"
    )]
    Exists {
        /// The name that was asked for.
        name: String,
    },
    /// No VM of this name or id.
    #[error("the catalog holds no VM {name:?}; `vmtwin vm list` shows those it holds")]
    NoVm {
        /// The name or the id that was asked for.
        name: String,
    },
    /// No disk of this id in the VM's row.
    #[error("the catalog knows no disk {disk:?} of this VM; inspect the VM first")]
    NoDisk {
        /// The disk id that was asked for.
        disk: String,
    },
    /// No job of this id.
    #[error("the catalog holds no job {job}")]
    NoJob {
        /// The id that was asked for.
        job: JobId,
    },
    /// No step of this id.
    #[error("the journal holds no step {step}")]
    NoStep {
        /// The id that was asked for.
        step: StepId,
    },
    /// No snapshot of this id in this repository.
    #[error("the catalog holds no snapshot {id:?}; `vmtwin snapshot list` shows those it holds")]
    NoSnapshot {
        /// The id that was asked for.
        id: String,
    },
    /// Another live job works on the VM.
    #[error(
        "job {job} of process {pid} on {host} has been working on this VM since {since}; \
         wait for it, or end that process"
    )]
    Busy {
        /// The job that holds the VM.
        job: JobId,
        /// The process that runs it.
        pid: u32,
        /// The host of that process.
        host: String,
        /// When the job began.
        since: OffsetDateTime,
    },
    /// The catalog belongs to no cluster.
    #[error("the catalog belongs to no cluster; run `vmtwin cluster create NAME` on one node")]
    NoCluster,
    /// The catalog belongs to a cluster of another name.
    #[error("the catalog belongs to the cluster {name:?} already")]
    OtherCluster {
        /// The name of that cluster.
        name: String,
    },
    /// Another node has the name.
    #[error("another node of the cluster is named {name:?}; choose another name with --node")]
    NodeExists {
        /// The name that was asked for.
        name: String,
    },
    /// The node is in the cluster, and has a certificate that counts.
    #[error(
        "{name} is in the cluster and has a certificate; if this host takes its place, take that one \
         back first: vmtwin cluster node remove {name}"
    )]
    NodeHasCertificate {
        /// Its name.
        name: String,
    },
    /// Another schedule has the name.
    #[error("there is a schedule {name:?} already; remove it first, or choose another name")]
    ScheduleExists {
        /// The name that was asked for.
        name: String,
    },
    /// No schedule of this name.
    #[error("there is no schedule {name:?}; see: vmtwin schedule list")]
    NoSchedule {
        /// The name that was asked for.
        name: String,
    },
    /// No task of this id.
    #[error("there is no task {task}")]
    NoTask {
        /// The id that was asked for.
        task: TaskId,
    },
    /// Another notification has the name.
    #[error("there is a notification {name:?} already; remove it first, or choose another name")]
    TargetExists {
        /// The name that was asked for.
        name: String,
    },
    /// No notification of this name.
    #[error("there is no notification {name:?}; see: vmtwin notify list")]
    NoTarget {
        /// The name that was asked for.
        name: String,
    },
    /// This node was removed from the cluster.
    #[error("this node was removed from the cluster; run `vmtwin cluster join TOKEN` on it")]
    NodeRemoved,
    /// The token does not let in.
    #[error(
        "the token was used, has expired or was never made; run `vmtwin cluster token` for another"
    )]
    Token,
    /// No node of this id.
    #[error("the cluster has no node {node}; run `vmtwin cluster join` on it")]
    NoNode {
        /// The id that was asked for.
        node: String,
    },
    /// Everything has moved to another catalog.
    #[error(
        "the catalog has moved to {to}; start the command again with it (--database, or without \
         for the file)"
    )]
    Moved {
        /// Where it is now.
        to: String,
    },
    /// A job whose process died left undos that have not been executed.
    #[error(
        "job {job} was cut off and what it began is not undone yet; run `vmtwin recover` first"
    )]
    NotRecovered {
        /// The job that was cut off.
        job: JobId,
    },
    /// A job cannot end while its journal holds open undos.
    #[error("job {job} cannot end: {open} of its steps are neither undone nor released")]
    OpenSteps {
        /// The job.
        job: JobId,
        /// How many of its steps are open.
        open: u64,
    },
    /// A change of state that the life of a job or a step does not have.
    #[error("a {what} cannot go from {from} to {to}")]
    Transition {
        /// `job` or `step`.
        what: &'static str,
        /// The state it is in.
        from: &'static str,
        /// The state that was asked for.
        to: &'static str,
    },
    /// A step was registered for a job that has ended.
    #[error("job {job} has ended; nothing can be added to its journal")]
    Ended {
        /// The job.
        job: JobId,
    },
    /// A value that the catalog cannot take.
    #[error("{what} is not acceptable: {why}")]
    Invalid {
        /// What the value is.
        what: &'static str,
        /// Why it is refused.
        why: String,
    },
    /// The file was written by a later version of the program.
    #[error(
        "{path}: the catalog has schema {found}, this program knows schemas up to {known}; \
         use the version of vmtwin that wrote it, or a later one"
    )]
    NewerSchema {
        /// The catalog file.
        path: PathBuf,
        /// The schema of the file.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// The schema is not one that any version of the program made.
    #[error(
        "{path}: the catalog's schema {version} was altered by something else; restore the file"
    )]
    AlteredSchema {
        /// The catalog file.
        path: PathBuf,
        /// The migration that does not match.
        version: i64,
    },
    /// The file is a database of another program.
    #[error("{path} is a database of another program, not a catalog; choose another path")]
    NotACatalog {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a database, or a damaged one.
    #[error(
        "{path} is damaged or no catalog at all; move it away (with its -wal and -shm files) and \
         rebuild the catalog from the repository"
    )]
    Corrupt {
        /// The catalog file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The catalog's file or folder cannot be made or written.
    #[error("{path} cannot be written; check its owner, its mode and the free space")]
    NotWritable {
        /// The file or the folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file system of the catalog is full.
    #[error(
        "the file system is full, so the catalog {path} was not changed; free some space on it \
         and try again"
    )]
    DiskFull {
        /// The catalog file.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: sqlx::Error,
    },
    /// The database server does not answer.
    #[error(
        "the database {place} does not answer; check that it runs and that this host may reach it"
    )]
    Unreachable {
        /// The database, without its password.
        place: String,
        /// What happened.
        #[source]
        source: sqlx::Error,
    },
    /// The database server answers, and lets us not in.
    #[error(
        "the database {place} lets us not in; check that it exists, its user and its password \
         (PGPASSWORD or ~/.pgpass)"
    )]
    Denied {
        /// The database, without its password.
        place: String,
        /// What the server says.
        #[source]
        source: sqlx::Error,
    },
    /// The URL of the database cannot be used.
    #[error("this is no URL of a PostgreSQL database: {why}; write postgres://USER@HOST/DATABASE")]
    BadUrl {
        /// Why not; never the URL itself, which may hold a password.
        why: String,
    },
    /// Another process kept the catalog locked for too long.
    #[error("the catalog stayed locked by another process for {waited_s} seconds; try again")]
    Locked {
        /// How long we waited.
        waited_s: u64,
    },
    /// A row holds a value that no version of the program writes.
    #[error(
        "the catalog is damaged: column {column} of table {table} holds {value:?}; rebuild the \
         catalog from the repository"
    )]
    Damaged {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What was found, or why it cannot be read.
        value: String,
    },
    /// A copy of a catalog was written by a later version of the program.
    #[error(
        "the copy has schema {found}, this program knows schemas up to {known}; use the version \
         of vmtwin that wrote it, or a later one"
    )]
    NewerDump {
        /// The schema of the copy.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// A copy of a catalog is damaged, or none.
    #[error("the copy cannot be loaded, and the catalog was not changed: {why}")]
    BadDump {
        /// What is wrong with it.
        why: String,
    },
    /// The file of a copy cannot be read or written.
    #[error("the file of the copy cannot be read or written")]
    DumpFile(#[source] std::io::Error),
    /// The identity of a process could not be read.
    #[error("{path} cannot be read; is /proc mounted?")]
    Process {
        /// The file below /proc.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for an id: {0}")]
    Random(getrandom::Error),
    /// Anything else the database says.
    #[error("the catalog failed to {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database says.
        #[source]
        source: sqlx::Error,
    },
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns an error of the database into ours; `doing` completes "failed to …".
pub(crate) fn database(doing: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| {
        let locked = matches!(sqlite_code(&source), Some(SQLITE_BUSY | SQLITE_LOCKED))
            || matches!(source, sqlx::Error::PoolTimedOut)
            || postgres_code(&source).as_deref() == Some(PG_LOCK_NOT_AVAILABLE);
        match locked {
            true => Error::Locked {
                waited_s: crate::open::BUSY_TIMEOUT.as_secs(),
            },
            false => Error::Database { doing, source },
        }
    }
}

/// The file of a copy cannot be read or written.
pub(crate) fn dump_file(source: std::io::Error) -> Error {
    Error::DumpFile(source)
}

/// PostgreSQL: `lock_timeout` has passed.
const PG_LOCK_NOT_AVAILABLE: &str = "55P03";
/// PostgreSQL: no room left on the server.
const PG_DISK_FULL: &str = "53100";
/// PostgreSQL: classes of "wrong user or password", and no such database.
const PG_DENIED: [&str; 2] = ["28", "3D"];

/// What an error means while a database server is connected to.
pub(crate) fn connecting(place: &str, source: sqlx::Error) -> Error {
    let place = place.to_owned();
    match postgres_code(&source) {
        Some(code) if PG_DENIED.contains(&&code[..2]) => Error::Denied { place, source },
        Some(_) => database("connect to its database")(source),
        None => Error::Unreachable { place, source },
    }
}

/// The SQLSTATE that PostgreSQL reported: five letters and digits.
fn postgres_code(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?;
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
    (error.code().len() == 5).then(|| error.code().to_owned())
}

pub(crate) const SQLITE_BUSY: u32 = 5;
pub(crate) const SQLITE_LOCKED: u32 = 6;
pub(crate) const SQLITE_READONLY: u32 = 8;
pub(crate) const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
pub(crate) const SQLITE_CANTOPEN: u32 = 14;
pub(crate) const SQLITE_NOTADB: u32 = 26;
/// Extended code: no room for the file that connections share their state by.
const SQLITE_IOERR_SHMSIZE: u32 = 10 | 19 << 8;

/// The primary result code of SQLite, without the extended bits.
pub(crate) fn sqlite_code(error: &sqlx::Error) -> Option<u32> {
    Some(extended_code(error)? & 0xff)
}

fn extended_code(error: &sqlx::Error) -> Option<u32> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    error.code()?.parse().ok()
}

/// Whether the file system that holds the database has no room left.
pub(crate) fn is_disk_full(error: &sqlx::Error) -> bool {
    sqlite_code(error) == Some(SQLITE_FULL)
        || extended_code(error) == Some(SQLITE_IOERR_SHMSIZE)
        || postgres_code(error).as_deref() == Some(PG_DISK_FULL)
}
