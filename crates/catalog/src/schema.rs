//! The schema: which migrations a database has, and which this program knows.

use std::path::Path;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Acquire, PgConnection, Row, SqliteConnection};

use crate::error::{Error, Result, database};
use crate::open::{Catalog, opening};
use crate::sql::Session;

static MIGRATOR: Migrator = sqlx::migrate!();

/// The newest schema that this program knows.
pub fn newest_schema() -> i64 {
    MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Refuses a file of a later version of this program, or of another one. Reads only.
pub(crate) async fn refuse_others(probe: &mut SqliteConnection, path: &Path) -> Result<()> {
    refuse_newer(schema_of(probe, path).await?, path)
}

/// The same for a database of a server.
pub(crate) async fn refuse_others_on_server(probe: &mut PgConnection, place: &Path) -> Result<()> {
    let look = database("look at its tables");
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT table_name::TEXT FROM information_schema.tables \
         WHERE table_schema = current_schema()",
    )
    .fetch_all(&mut *probe)
    .await
    .map_err(&look)?;
    let ours = tables.iter().any(|name| is_journal_of_migrations(name));
    match (ours, tables.is_empty()) {
        (false, true) => Ok(()),
        (false, false) => Err(not_a_catalog(place)),
        (true, _) => {
            let found = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
                .fetch_one(probe)
                .await
                .map_err(&look)?;
            refuse_newer(found, place)
        }
    }
}

fn refuse_newer(found: Option<i64>, path: &Path) -> Result<()> {
    let known = newest_schema();
    match found {
        Some(found) if found > known => Err(Error::NewerSchema {
            path: path.to_owned(),
            found,
            known,
        }),
        _ => Ok(()),
    }
}

/// Applies the migrations up to this one that the database lacks.
pub(crate) async fn bring_up_to<'a, A>(schema: i64, pool: A, path: &Path) -> Result<()>
where
    A: Acquire<'a>,
    <A::Connection as std::ops::Deref>::Target: sqlx::migrate::Migrate,
{
    MIGRATOR
        .run_to(schema, pool)
        .await
        .map_err(|error| migrating(path, error))
}

/// The newest migration the file has; nothing if the file is empty.
async fn schema_of(probe: &mut SqliteConnection, path: &Path) -> Result<Option<i64>> {
    let tables = sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(&mut *probe)
        .await
        .map_err(|error| opening(path, error))?;
    let ours = tables
        .iter()
        .any(|row| row.try_get("name").is_ok_and(is_journal_of_migrations));
    match (ours, tables.is_empty()) {
        (false, true) => Ok(None),
        (false, false) => Err(not_a_catalog(path)),
        (true, _) => sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
            .fetch_one(probe)
            .await
            .map_err(|error| opening(path, error)),
    }
}

fn not_a_catalog(path: &Path) -> Error {
    Error::NotACatalog {
        path: path.to_owned(),
    }
}

fn is_journal_of_migrations(table: &str) -> bool {
    table == "_sqlx_migrations"
}

fn migrating(path: &Path, error: MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version)
        | MigrateError::VersionMismatch(version)
        | MigrateError::Dirty(version) => Error::AlteredSchema {
            path: path.to_owned(),
            version,
        },
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => {
            opening(path, source)
        }
        other => database("bring its schema up to date")(sqlx::Error::Migrate(Box::new(other))),
    }
}

impl Catalog {
    /// Reads the whole catalog: the database's own check, references, and every row. The first
    /// thing that is wrong is the error.
    pub async fn check(&self) -> Result<()> {
        self.check_pages().await?;
        self.vms().await?;
        self.snapshots(None).await?;
        self.settings().await?;
        self.nodes().await?;
        for schedule in self.schedules().await? {
            self.runs(&schedule.id, u32::MAX).await?;
        }
        self.failing().await?;
        for target in self.notify_targets().await? {
            self.messages(&target.id, u32::MAX).await?;
        }
        for job in self.jobs(u32::MAX).await? {
            self.steps(&job.id).await?;
        }
        Ok(())
    }

    /// A server checks its references always and its pages itself.
    async fn check_pages(&self) -> Result<()> {
        let mut read = self.read().await?;
        let Session::Sqlite(read) = &mut *read else {
            return Ok(());
        };
        let verdict: String = sqlx::query_scalar("PRAGMA integrity_check(1)")
            .fetch_one(&mut **read)
            .await
            .map_err(database("check its pages"))?;
        let dangling = sqlx::query("PRAGMA foreign_key_check")
            .fetch_optional(&mut **read)
            .await
            .map_err(database("check its references"))?;
        match (verdict.as_str(), dangling) {
            ("ok", None) => Ok(()),
            ("ok", Some(_)) => Err(Error::Damaged {
                table: "(any)",
                column: "(reference)",
                value: "a row that refers to nothing".to_owned(),
            }),
            _ => Err(Error::Damaged {
                table: "(any)",
                column: "(page)",
                value: verdict,
            }),
        }
    }
}
