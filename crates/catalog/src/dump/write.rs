//! Writing a copy: page by page along the primary keys, hashed on the way.

use std::io::Write;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::Value;

use super::table::{Column, Kind, Table, list, quoted, tables};
use super::{
    BYTES_AT_ONCE, DumpSummary, FORMAT, Header, ROWS_AT_ONCE, TableHeader, TableSummary,
    TableTrailer, Trailer, VERSION, schema_of,
};
use crate::error::{Error, Result, database, dump_file};
use crate::sql::{Argument, Query, Row, Session, query_built};

/// A SHA-256 that grows.
pub(super) struct Hash(Context);

impl Hash {
    pub(super) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn hex(self) -> String {
        let digest = self.0.finish();
        digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Writes a copy of all that the session sees.
pub(super) async fn dump(
    session: &mut Session,
    to: &mut (dyn Write + Send),
) -> Result<DumpSummary> {
    let mut lines = Lines {
        to,
        all: Hash::new(),
    };
    let schema = schema_of(session).await?;
    lines.line(&Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        schema,
    })?;
    let mut summaries = Vec::new();
    for table in tables(session).await? {
        summaries.push(dump_table(session, &table, &mut lines).await?);
    }
    let sha256 = std::mem::replace(&mut lines.all, Hash::new()).hex();
    lines.line(&Trailer {
        end: true,
        tables: summaries.len(),
        sha256,
    })?;
    Ok(DumpSummary {
        schema,
        tables: summaries,
    })
}

/// What one table holds now.
pub(super) async fn summarize(session: &mut Session, table: &Table) -> Result<TableSummary> {
    let mut lines = Lines {
        to: &mut std::io::sink(),
        all: Hash::new(),
    };
    dump_table(session, table, &mut lines).await
}

/// Where the lines go.
struct Lines<'a> {
    to: &'a mut (dyn Write + Send),
    all: Hash,
}

impl Lines<'_> {
    fn line(&mut self, value: &impl Serialize) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(value).map_err(|error| dump_file(error.into()))?;
        line.push(b'\n');
        self.all.update(&line);
        self.to.write_all(&line).map_err(dump_file)?;
        Ok(line)
    }
}

async fn dump_table(
    session: &mut Session,
    table: &Table,
    lines: &mut Lines<'_>,
) -> Result<TableSummary> {
    lines.line(&TableHeader {
        table: table.name.clone(),
        columns: table.columns.iter().map(|c| c.name.clone()).collect(),
    })?;
    let mut hash = Hash::new();
    let mut rows = 0;
    let mut after: Option<Vec<Argument>> = None;
    // Few at first: nobody knows how long the rows of this table are.
    let mut limit = 4;
    loop {
        let page = page(session, table, after.as_deref(), limit).await?;
        let mut bytes = 0;
        for row in &page {
            let line = lines.line(&values(row, &table.columns)?)?;
            hash.update(&line);
            bytes += line.len();
            rows += 1;
        }
        match page.last() {
            Some(last) if page.len() == limit => after = Some(key_of(last, table)?),
            _ => break,
        }
        limit = match bytes > BYTES_AT_ONCE {
            true => (limit / 2).max(1),
            false => (limit * 2).min(ROWS_AT_ONCE),
        };
    }
    let sha256 = hash.hex();
    lines.line(&TableTrailer {
        rows,
        sha256: sha256.clone(),
    })?;
    Ok(TableSummary {
        table: table.name.clone(),
        rows,
        sha256,
    })
}

/// The next rows after a key, in the order of the key's bytes.
async fn page(
    session: &mut Session,
    table: &Table,
    after: Option<&[Argument]>,
    limit: usize,
) -> Result<Vec<Row>> {
    // The order of texts in a server depends on its locale, unless it is told; SQLite's is by bytes.
    let by_bytes = match session {
        Session::Sqlite(_) => "",
        Session::Postgres(_) => " COLLATE \"C\"",
    };
    let key: Vec<String> = table
        .key
        .iter()
        .map(|column| match column.kind {
            Kind::Text => format!("{}{by_bytes}", quoted(&column.name)),
            _ => quoted(&column.name),
        })
        .collect();
    let key = key.join(", ");
    let from = match after {
        None => String::new(),
        Some(after) => {
            let places: Vec<String> = (1..=after.len()).map(|n| format!("${n}")).collect();
            format!(" WHERE ({key}) > ({})", places.join(", "))
        }
    };
    let sql = format!(
        "SELECT {} FROM {}{from} ORDER BY {key} LIMIT {limit}",
        list(&table.columns),
        quoted(&table.name)
    );
    let query = after.unwrap_or_default().iter().cloned();
    let query = query.fold(query_built(sql), Query::bind);
    query
        .fetch_all(session)
        .await
        .map_err(database("read a table"))
}

fn key_of(row: &Row, table: &Table) -> Result<Vec<Argument>> {
    table
        .key
        .iter()
        .map(|column| {
            Ok(match column.kind {
                Kind::Text => Argument::Text(get(row, column)?),
                Kind::Integer => Argument::Integer(get(row, column)?),
                Kind::Flag => Argument::Flag(get(row, column)?),
            })
        })
        .collect()
}

fn values(row: &Row, columns: &[Column]) -> Result<Vec<Value>> {
    columns
        .iter()
        .map(|column| {
            Ok(match column.kind {
                Kind::Text => get::<Option<String>>(row, column)?.into(),
                Kind::Integer => get::<Option<i64>>(row, column)?.into(),
                Kind::Flag => get::<Option<bool>>(row, column)?.into(),
            })
        })
        .collect()
}

fn get<T: crate::sql::Readable>(row: &Row, column: &Column) -> Result<T> {
    row.get(&column.name).map_err(|error| Error::Damaged {
        table: "(any)",
        column: "(any)",
        value: format!("{}: {error}", column.name),
    })
}
