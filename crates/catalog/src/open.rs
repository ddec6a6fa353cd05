//! Opening the catalog's file, and the transactions that everything else uses. A catalog on
//! PostgreSQL is opened in `postgres.rs`.
//!
//! Durability: write-ahead log with `synchronous=FULL`, so a commit that returned is on disk; the
//! resume flag of a guest is committed before the guest is paused. Write transactions take the
//! write lock at their start (`BEGIN IMMEDIATE`), so what they read first is still true when they
//! write, whichever process or task comes along.
//!
//! Two processes that meet an empty file must not both set it up: while a catalog is opened, the
//! file with `-lock` after its name is locked (`flock`). The catalog's file itself is never opened
//! by other means than SQLite once it exists, since closing any descriptor of it would drop
//! SQLite's locks.
//!
//! A full file system shows when a transaction begins or commits, since nothing of it is written
//! between the two (`cache_spill=OFF`); both say so with the path. SQLite has rolled the
//! transaction back by then, which sqlx does not know: it believes that connection to be in a
//! transaction for ever, so such a connection is closed instead of going back to the pool.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};

use crate::error::{
    Error, Result, SQLITE_CANTOPEN, SQLITE_CORRUPT, SQLITE_NOTADB, SQLITE_READONLY, connecting,
    database, is_disk_full, sqlite_code,
};
use crate::postgres;
use crate::schema;
use crate::sql::{Pool, Transaction};

/// How long a transaction waits for those of other processes. All of ours are short.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers beside the one writer that SQLite allows.
const MAX_CONNECTIONS: u32 = 4;
/// How often the lock is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Guests and their disks, jobs and their journals, snapshots, settings.
///
/// Clones share their connections. Any number of processes may have the same catalog open.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(crate) pool: Pool,
    /// The file, or the URL of the database without its password.
    pub(crate) path: Arc<Path>,
}

impl Catalog {
    /// Opens the catalog in this file; makes the file (mode 0600) and its folder (mode 0700) if
    /// they are missing, and brings an older schema up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        Self::open_at(path, schema::newest_schema()).await
    }

    /// Opens a file that is not to get a newer schema than this.
    pub(crate) async fn open_at(path: &Path, schema: i64) -> Result<Self> {
        let owned = path.to_owned();
        let prepared = tokio::task::spawn_blocking(move || prepare(&owned)).await;
        let lock = prepared.map_err(|join| not_writable(path, io::Error::other(join)))??;
        let pool = connect(path, schema).await?;
        drop(lock);
        Ok(Self {
            pool: Pool::Sqlite(pool),
            path: path.into(),
        })
    }

    /// The file, or the URL of the database without its password.
    pub fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// True if it is in a database that several hosts may share.
    pub fn is_shared(&self) -> bool {
        matches!(self.pool, Pool::Postgres(_))
    }

    /// Closes every connection. Dropping the catalog is safe as well: what was committed stays.
    pub async fn close(self) {
        match self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    /// A transaction that sees one state of the catalog and changes nothing.
    pub(crate) async fn read(&self) -> Result<Transaction> {
        match &self.pool {
            Pool::Sqlite(pool) => pool.begin().await.map(Transaction::from),
            Pool::Postgres(pool) => postgres::begin_to_read(pool).await,
        }
        .map_err(|error| self.unless_lost("begin to read", error))
    }

    /// A transaction that no other writer runs beside.
    pub(crate) async fn write(&self) -> Result<Transaction> {
        match &self.pool {
            Pool::Sqlite(pool) => pool
                .begin_with("BEGIN IMMEDIATE")
                .await
                .map(Transaction::from),
            Pool::Postgres(pool) => postgres::begin_to_write(pool).await,
        }
        .map_err(|error| self.writing("begin to write", error))
    }

    /// Commits; after this returned, the change is on disk.
    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<()> {
        let committed = transaction.commit().await;
        committed.map_err(|error| self.writing("commit", error))
    }

    fn writing(&self, doing: &'static str, error: sqlx::Error) -> Error {
        match is_disk_full(&error) {
            true => disk_full(&self.path, error),
            false => self.unless_lost(doing, error),
        }
    }

    /// A server that is lost while a transaction begins or ends is named.
    fn unless_lost(&self, doing: &'static str, error: sqlx::Error) -> Error {
        let lost = matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::Io(_));
        match self.is_shared() && lost {
            true => connecting(&self.place(), error),
            false => database(doing)(error),
        }
    }
}

/// Opens the file, which may belong to another program or to a later version of this one: nothing
/// in it is changed, not even its journal mode, before that is known.
async fn connect(path: &Path, schema: i64) -> Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("cache_spill", "OFF");
    let mut probe = options
        .connect()
        .await
        .map_err(|error| opening(path, error))?;
    let ours = schema::refuse_others(&mut probe, path).await;
    probe.close().await.map_err(|error| opening(path, error))?;
    ours?;
    let pool = SqlitePoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(BUSY_TIMEOUT)
        .after_release(|connection, _| Box::pin(is_idle(connection)))
        .connect_with(options.journal_mode(SqliteJournalMode::Wal))
        .await
        .map_err(|error| opening(path, error))?;
    match schema::bring_up_to(schema, &pool, path).await {
        Ok(()) => Ok(pool),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

/// Whether a connection that is given back has left its transaction.
async fn is_idle(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // Dropping a transaction only queues its end; the answer comes after that.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// What an error means while the file is opened.
pub(crate) fn opening(path: &Path, error: sqlx::Error) -> Error {
    match sqlite_code(&error) {
        _ if is_disk_full(&error) => disk_full(path, error),
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Error::Corrupt {
            path: path.to_owned(),
            source: Some(error),
        },
        Some(SQLITE_READONLY | SQLITE_CANTOPEN) => not_writable(path, error),
        _ => database("open its file")(error),
    }
}

fn disk_full(path: &Path, source: sqlx::Error) -> Error {
    Error::DiskFull {
        path: path.to_owned(),
        source,
    }
}

fn not_writable(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::NotWritable {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

/// Makes folder and file, and returns the lock that keeps other openers out.
fn prepare(path: &Path) -> Result<File> {
    let folder = folder_of(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| not_writable(&folder, source))?;
    let lock = lock_beside(path)?;
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        // The name must be on disk before anything relies on what the file holds.
        Ok(_) => File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| not_writable(&folder, source))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => keep_private(path)?,
        Err(error) => return Err(not_writable(path, error)),
    }
    Ok(lock)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Waits for the lock that keeps other openers of this catalog out.
fn lock_beside(path: &Path) -> Result<File> {
    let mut beside = path.as_os_str().to_owned();
    beside.push("-lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&beside)
        .map_err(|source| not_writable(Path::new(&beside), source))?;
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked {
                    waited_s: BUSY_TIMEOUT.as_secs(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(not_writable(Path::new(&beside), source));
            }
        }
    }
}

/// A file that was there before: writable by us, and by nobody else even readable.
fn keep_private(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|source| not_writable(path, source))?;
    if !metadata.is_file() {
        return Err(not_writable(path, io::Error::other("not a regular file")));
    }
    rustix::fs::access(
        path,
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
    )
    .map_err(|source| not_writable(path, source))?;
    let mut permissions = metadata.permissions();
    if permissions.mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the catalog; closing it to them");
        permissions.set_mode(0o600);
        std::fs::set_permissions(path, permissions).map_err(|source| not_writable(path, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commits_are_durable_and_references_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.db"))
            .await
            .unwrap();
        let ask = async |pragma| -> String {
            let mut read = catalog.read().await.unwrap();
            let crate::sql::Session::Sqlite(read) = &mut *read else {
                unreachable!("opened as a file")
            };
            let row = sqlx::query(pragma).fetch_one(&mut **read).await.unwrap();
            sqlx::Row::try_get_unchecked(&row, 0).unwrap()
        };
        assert_eq!(ask("PRAGMA journal_mode").await, "wal");
        assert_eq!(ask("PRAGMA synchronous").await, "2"); // FULL
        assert_eq!(ask("PRAGMA foreign_keys").await, "1");
        assert_eq!(ask("PRAGMA cache_spill").await, "0");
    }
}
