//! A complete copy of the catalog that belongs to neither database: all tables of one instant, to
//! be kept in the backup of a cluster, loaded into a file or a server, or used to move from one to
//! the other.
//!
//! The format, JSON Lines in UTF-8. Tables are in the order of their names, columns too, and rows
//! in the order (of bytes) of their primary key, so that the same content is the same bytes
//! whichever database it came from:
//!
//! ```text
//! {"format":"vmtwin-database","version":1,"schema":2}
//! {"table":"setting","columns":["key","value"]}
//! ["repository","/srv/repository"]           a row: texts, whole numbers, booleans, null
//! {"rows":1,"sha256":"…"}                    of the lines of this table's rows
//! {"end":true,"tables":6,"sha256":"…"}       of every line before
//! ```
//!
//! Loading replaces everything in one transaction. Before it commits, every table is read back and
//! its count and hash are compared. A copy of an older schema is loaded into a scratch file of that
//! schema first, and brought up to date there by the same migrations as any catalog.

mod load;
mod table;
mod write;

use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, dump_file};
use crate::job;
use crate::lease;
use crate::node;
use crate::open::Catalog;
use crate::schema::newest_schema;
use crate::setting;
use crate::sql::Session;

/// The first line names the format.
const FORMAT: &str = "vmtwin-database";
/// The version of the format, not of the schema.
const VERSION: u32 = 1;
/// Most rows that are read or inserted by one statement.
const ROWS_AT_ONCE: usize = 128;
/// From how many bytes on fewer rows are taken: those of a statement are in memory at once.
const BYTES_AT_ONCE: usize = 2 << 20;

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpSummary {
    /// The schema of the tables.
    pub schema: i64,
    /// The tables, by name.
    pub tables: Vec<TableSummary>,
}

impl DumpSummary {
    /// What a copy says that it holds, be it of an older or newer schema; nothing is loaded.
    pub fn of(from: &mut (dyn BufRead + Send)) -> Result<DumpSummary> {
        let mut from = load::Reader::new(from);
        from.header()?;
        load::summarize(&mut from)
    }

    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        // What a copy says of itself may be anything.
        let rows = self.tables.iter().map(|table| table.rows);
        rows.fold(0, u64::saturating_add)
    }
}

/// What a copy holds of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSummary {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over the lines of its rows, in hexadecimal.
    pub sha256: String,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    schema: i64,
}

/// The line before the rows of a table.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableHeader {
    table: String,
    columns: Vec<String>,
}

/// The line after the rows of a table.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableTrailer {
    rows: u64,
    sha256: String,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    end: bool,
    tables: usize,
    sha256: String,
}

/// What loading a copy did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What the copy held; all of it was read back before it was committed.
    pub copied: DumpSummary,
    /// What the catalog holds now.
    pub content: DumpSummary,
    /// Deletions that waited when the copy was made, and do not any more.
    pub dropped_deletions: u64,
}

/// Of when a copy is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Of now: the catalog moves, and all in it is as true as before.
    Now,
    /// Of an earlier time.
    Earlier,
}

impl Catalog {
    /// Writes a complete copy, of one instant. Needs memory for some rows, not for all.
    pub async fn dump(&self, to: &mut (dyn Write + Send)) -> Result<DumpSummary> {
        let mut read = self.read().await?;
        write::dump(&mut read, to).await
    }

    /// Makes the content of this catalog that of a copy of an earlier time: all of it or, on any error,
    /// nothing. In the same transaction what was true at that time alone is undone: no node is silent
    /// that was not before, and no deletion waits. Refused with [`Error::Busy`] or
    /// [`Error::NotRecovered`] while there are [`Catalog::unfinished_jobs`]. In the folder `scratch`, which
    /// must be private, a copy of an older schema is brought up to date; what is made there is removed.
    pub async fn load(
        &self,
        from: &mut (dyn BufRead + Send),
        scratch: &Path,
        force: bool,
    ) -> Result<Loaded> {
        let mut from = load::Reader::new(from);
        let header = from.header()?;
        let known = newest_schema();
        match header.schema {
            schema if schema > known => Err(Error::NewerDump {
                found: schema,
                known,
            }),
            schema if schema < known => self.load_older(from, schema, scratch, force).await,
            _ => self.load_same(from, Age::Earlier, force).await,
        }
    }

    async fn load_same(&self, mut from: load::Reader<'_>, age: Age, force: bool) -> Result<Loaded> {
        let mut write = self.write().await?;
        job::refuse_if_unfinished(&mut write, force).await?;
        let loaded = match age {
            Age::Now => {
                let copied = load::load(&mut write, &mut from).await?;
                Loaded {
                    content: copied.clone(),
                    copied,
                    dropped_deletions: 0,
                }
            }
            Age::Earlier => load_earlier(&mut write, &mut from).await?,
        };
        self.commit(write).await?;
        Ok(loaded)
    }

    async fn load_older(
        &self,
        from: load::Reader<'_>,
        schema: i64,
        scratch: &Path,
        force: bool,
    ) -> Result<Loaded> {
        let folder = tempfile::Builder::new()
            .prefix("catalog-")
            .tempdir_in(scratch)
            .map_err(dump_file)?;
        let path = folder.path().join("catalog.db");
        let older = Catalog::open_at(&path, schema).await?;
        older.load_same(from, Age::Now, false).await?;
        older.close().await;
        let current = Catalog::open(&path).await?;
        let mut source = current.write().await?;
        let loaded = copy(&mut source, (self, force), Age::Earlier, folder.path()).await?;
        drop(source);
        current.close().await;
        Ok(loaded)
    }

    /// Makes the content of another catalog that of this one. Nothing is written to this one
    /// meanwhile.
    pub async fn copy_to(&self, other: &Catalog, scratch: &Path) -> Result<DumpSummary> {
        let mut source = self.write().await?;
        let loaded = copy(&mut source, (other, false), Age::Now, scratch).await?;
        Ok(loaded.content)
    }

    /// Moves to another catalog, whose content is replaced. Refused with [`Error::Busy`] while either has
    /// [`Catalog::unfinished_jobs`]. This one keeps its rows, and starts no job any more
    /// ([`Error::Moved`]): a process that still has it open must not go on with it. May be repeated.
    pub async fn move_to(
        &self,
        other: &Catalog,
        scratch: &Path,
        force: bool,
    ) -> Result<DumpSummary> {
        let mut write = self.write().await?;
        job::refuse_if_unfinished(&mut write, force).await?;
        setting::mark_moved(&mut write, None).await?;
        let loaded = copy(&mut write, (other, force), Age::Now, scratch).await?;
        setting::mark_moved(&mut write, Some(&other.place())).await?;
        self.commit(write).await?;
        Ok(loaded.content)
    }

    /// What every table holds: counts and hashes that are the same in both databases.
    pub async fn summary(&self) -> Result<DumpSummary> {
        self.dump(&mut std::io::sink()).await
    }
}

/// Loads a copy of an earlier time, and undoes what was true then alone.
async fn load_earlier(write: &mut Session, from: &mut load::Reader<'_>) -> Result<Loaded> {
    let before = node::list(write).await?;
    let copied = load::load(write, from).await?;
    let dropped_deletions = lease::wake(write, &before).await?;
    let mut content = copied.clone();
    for table in table::tables(write).await? {
        let changed = ["deletion", "node"].contains(&table.name.as_str());
        let mut summaries = content.tables.iter_mut();
        let summary = summaries.find(|summary| changed && summary.table == table.name);
        if let Some(summary) = summary {
            *summary = write::summarize(write, &table).await?;
        }
    }
    Ok(Loaded {
        copied,
        content,
        dropped_deletions,
    })
}

async fn copy(
    source: &mut Session,
    (other, force): (&Catalog, bool),
    age: Age,
    scratch: &Path,
) -> Result<Loaded> {
    let mut file = tempfile::tempfile_in(scratch).map_err(dump_file)?;
    let mut buffered = BufWriter::new(&mut file);
    let dumped = write::dump(source, &mut buffered).await?;
    buffered.flush().map_err(dump_file)?;
    drop(buffered);
    file.rewind().map_err(dump_file)?;
    let mut file = BufReader::new(file);
    let mut from = load::Reader::new(&mut file);
    from.header()?;
    let loaded = other.load_same(from, age, force).await?;
    match loaded.copied == dumped {
        true => Ok(loaded),
        false => Err(Error::BadDump {
            why: "what was loaded is not what was dumped".to_owned(),
        }),
    }
}

/// The schema that a session's tables have.
async fn schema_of(session: &mut Session) -> Result<i64> {
    let row = crate::sql::query("SELECT MAX(version) AS version FROM _sqlx_migrations")
        .fetch_one(session)
        .await
        .map_err(crate::error::database("read its schema"))?;
    crate::row::Fields::new("_sqlx_migrations", &row).signed("version")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::Connection;
    use vmtwin_testkit::Postgres;

    /// A copy that an older version made is worth what the catalog it was made of is worth.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_of_the_first_schema_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("first.db");
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let mut raw = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(include_str!("../../tests/fixtures/schema-1.sql"))
            .execute(&mut raw)
            .await
            .unwrap();
        raw.close().await.unwrap();
        let first = Catalog::open_at(&path, 1).await.unwrap();
        let mut copy = Vec::new();
        assert_eq!(first.dump(&mut copy).await.unwrap().schema, 1);
        first.close().await;

        let target = Catalog::open(&folder.path().join("target.db"))
            .await
            .unwrap();
        let loaded = target
            .load(&mut &copy[..], folder.path(), false)
            .await
            .unwrap();
        let loaded = loaded.content;
        assert_eq!(loaded.schema, newest_schema());
        let upgraded = Catalog::open(&path).await.unwrap();
        assert_eq!(upgraded.summary().await.unwrap(), loaded);
        assert_eq!(target.vms().await.unwrap(), upgraded.vms().await.unwrap());
        target.check().await.unwrap();

        let server = Catalog::open_postgres(&Postgres::shared().database())
            .await
            .unwrap();
        let on_server = server.load(&mut &copy[..], folder.path(), false).await;
        assert_eq!(on_server.unwrap().content, loaded);
        assert_eq!(server.vms().await.unwrap(), upgraded.vms().await.unwrap());
        server.check().await.unwrap();
    }
}
