//! Loading a copy, which may come from anywhere: lines are bounded, names are those of the schema,
//! values have the columns' types, counts and hashes agree, and nothing follows the end.

use std::io::{BufRead, Read};

use serde::Deserialize;
use serde_json::Value;

use super::table::{
    Column, Kind, Table, check_references, defer_references, execute, list, quoted,
};
use super::write::Hash;
use super::{
    BYTES_AT_ONCE, DumpSummary, FORMAT, Header, ROWS_AT_ONCE, TableHeader, TableSummary,
    TableTrailer, Trailer, VERSION, schema_of, table, write,
};
use crate::error::{Error, Result, database, dump_file};
use crate::sql::{Argument, Session, query_built};

/// Most tables that a copy may tell of.
const MAX_TABLES: usize = 1000;
/// Longest name of a table, bytes.
const MAX_NAME_BYTES: usize = 64;
/// A hash, in hexadecimal.
const SHA256_DIGITS: usize = 64;
/// Longest line: a row with the largest report of a job, and much room.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// The lines of a copy, hashed as they are read.
pub(super) struct Reader<'a> {
    from: &'a mut (dyn BufRead + Send),
    all: Hash,
    number: u64,
    header: Option<Header>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(from: &'a mut (dyn BufRead + Send)) -> Self {
        Self {
            from,
            all: Hash::new(),
            number: 0,
            header: None,
        }
    }

    /// The first line; to be read before anything else.
    pub(super) fn header(&mut self) -> Result<&Header> {
        let line = self.line()?;
        let header: Header = self.parse(&line)?;
        if header.format != FORMAT {
            return Err(self.bad("this is no copy of a catalog"));
        }
        if header.version != VERSION {
            return Err(self.bad(&format!("format {} is not known", header.version)));
        }
        Ok(self.header.insert(header))
    }

    /// The next line, with its end.
    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.number += 1;
        let mut bounded = (&mut self.from).take(MAX_LINE_BYTES);
        bounded.read_until(b'\n', &mut line).map_err(dump_file)?;
        match line.last() {
            Some(b'\n') => Ok(line),
            Some(_) if line.len() as u64 >= MAX_LINE_BYTES => Err(self.bad("it is too long")),
            _ => Err(self.bad("the file ends too early")),
        }
    }

    fn parse<'l, T: Deserialize<'l>>(&mut self, line: &'l [u8]) -> Result<T> {
        self.all.update(line);
        serde_json::from_slice(line).map_err(|error| self.bad(&error.to_string()))
    }

    fn bad(&self, why: &str) -> Error {
        Error::BadDump {
            why: format!("line {}: {why}", self.number),
        }
    }

    /// The last line: nothing was lost before it, and nothing follows.
    fn end(&mut self, line: &[u8], tables: usize) -> Result<()> {
        let so_far = std::mem::replace(&mut self.all, Hash::new()).hex();
        let trailer: Trailer = self.parse(line)?;
        if !trailer.end || trailer.tables != tables || trailer.sha256 != so_far {
            return Err(self.bad("the file is damaged: its hash does not match"));
        }
        match self.from.fill_buf().map_err(dump_file)?.is_empty() {
            true => Ok(()),
            false => Err(self.bad("something follows the end")),
        }
    }
}

/// Replaces all that the session sees by the copy, whose header has been read.
pub(super) async fn load(session: &mut Session, from: &mut Reader<'_>) -> Result<DumpSummary> {
    let schema = from.header.as_ref().map(|header| header.schema);
    let known = table::tables(session).await?;
    defer_references(session).await?;
    for table in &known {
        execute(session, format!("DELETE FROM {}", quoted(&table.name))).await?;
    }
    let mut loaded: Vec<TableSummary> = Vec::new();
    loop {
        let line = from.line()?;
        if !line.starts_with(b"{\"table\"") {
            from.end(&line, loaded.len())?;
            break;
        }
        let header: TableHeader = from.parse(&line)?;
        let table = table_of(&header, &known, &loaded).map_err(|why| from.bad(&why))?;
        loaded.push(load_table(session, table, &header, from).await?);
    }
    check_references(session).await?;
    let expected = DumpSummary {
        schema: schema.unwrap_or_default(),
        tables: loaded,
    };
    verify(session, expected).await
}

/// What a copy, whose header has been read, says that it holds; its hash is checked, and nothing is
/// loaded.
pub(super) fn summarize(from: &mut Reader<'_>) -> Result<DumpSummary> {
    let schema = from.header.as_ref().map(|header| header.schema);
    let mut tables: Vec<TableSummary> = Vec::new();
    loop {
        let line = from.line()?;
        if !line.starts_with(b"{\"table\"") {
            from.end(&line, tables.len())?;
            break;
        }
        let header: TableHeader = from.parse(&line)?;
        if tables.len() == MAX_TABLES {
            return Err(from.bad("there are too many tables"));
        }
        if !is_name(&header.table) || tables.iter().any(|one| one.table == header.table) {
            return Err(from.bad("the table's name is not one, or comes twice"));
        }
        let trailer: TableTrailer = loop {
            let line = from.line()?;
            match line.starts_with(b"{") {
                true => break from.parse(&line)?,
                false => from.all.update(&line),
            }
        };
        if trailer.sha256.len() != SHA256_DIGITS {
            return Err(from.bad("the table's hash is none"));
        }
        tables.push(TableSummary {
            table: header.table,
            rows: trailer.rows,
            sha256: trailer.sha256,
        });
    }
    Ok(DumpSummary {
        schema: schema.unwrap_or_default(),
        tables,
    })
}

/// Names of tables are small letters; those of a copy from anywhere are shown to people.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.chars().all(allowed)
}

/// Reads everything back and compares counts and hashes.
async fn verify(session: &mut Session, expected: DumpSummary) -> Result<DumpSummary> {
    if schema_of(session).await? != expected.schema {
        return Err(Error::BadDump {
            why: "its schema is not that of the tables".to_owned(),
        });
    }
    let found = write::dump(session, &mut std::io::sink()).await?;
    if found == expected {
        return Ok(found);
    }
    let differs = |table: &&TableSummary| !expected.tables.contains(table);
    let name = found.tables.iter().find(differs).map(|t| t.table.as_str());
    Err(Error::BadDump {
        why: format!("table {} reads back otherwise", name.unwrap_or("?")),
    })
}

fn table_of<'k>(
    header: &TableHeader,
    known: &'k [Table],
    loaded: &[TableSummary],
) -> Result<&'k Table, String> {
    if loaded.iter().any(|one| one.table == header.table) {
        return Err(format!("table {:?} comes twice", header.table));
    }
    let table = known
        .iter()
        .find(|table| table.name == header.table)
        .ok_or_else(|| format!("table {:?} is not known", header.table))?;
    match table.columns.iter().map(|c| &c.name).eq(&header.columns) {
        true => Ok(table),
        false => Err(format!("table {:?} has other columns", header.table)),
    }
}

async fn load_table(
    session: &mut Session,
    table: &Table,
    header: &TableHeader,
    from: &mut Reader<'_>,
) -> Result<TableSummary> {
    let mut hash = Hash::new();
    let mut rows = 0;
    let mut batch: Vec<Vec<Argument>> = Vec::new();
    let mut batch_bytes = 0;
    let trailer: TableTrailer = loop {
        let line = from.line()?;
        if line.starts_with(b"{") {
            break from.parse(&line)?;
        }
        let values: Vec<Value> = from.parse(&line)?;
        let row = arguments(values, &table.columns).map_err(|why| from.bad(&why))?;
        hash.update(&line);
        rows += 1;
        batch.push(row);
        batch_bytes += line.len();
        if batch.len() == ROWS_AT_ONCE || batch_bytes > BYTES_AT_ONCE {
            insert(session, table, std::mem::take(&mut batch)).await?;
            batch_bytes = 0;
        }
    };
    insert(session, table, batch).await?;
    let found = TableTrailer {
        rows,
        sha256: hash.hex(),
    };
    if found != trailer {
        let why = format!("table {:?} is damaged: count or hash differ", table.name);
        return Err(from.bad(&why));
    }
    Ok(TableSummary {
        table: header.table.clone(),
        rows,
        sha256: found.sha256,
    })
}

fn arguments(values: Vec<Value>, columns: &[Column]) -> Result<Vec<Argument>, String> {
    if values.len() != columns.len() {
        return Err("the row has another number of columns".to_owned());
    }
    let typed = values.into_iter().zip(columns);
    typed
        .map(|(value, column)| match (column.kind, value) {
            (Kind::Text, Value::Null) => Ok(Argument::Text(None)),
            (Kind::Integer, Value::Null) => Ok(Argument::Integer(None)),
            (Kind::Flag, Value::Null) => Ok(Argument::Flag(None)),
            (Kind::Text, Value::String(text)) => Ok(Argument::Text(Some(text))),
            (Kind::Integer, Value::Number(number)) if number.is_i64() => {
                Ok(Argument::Integer(number.as_i64()))
            }
            (Kind::Flag, Value::Bool(flag)) => Ok(Argument::Flag(Some(flag))),
            _ => Err(format!(
                "column {:?} has a value of another type",
                column.name
            )),
        })
        .collect()
}

async fn insert(session: &mut Session, table: &Table, rows: Vec<Vec<Argument>>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let width = table.columns.len();
    let places = |row: usize| {
        let places: Vec<String> = (1..=width)
            .map(|n| format!("${}", row * width + n))
            .collect();
        format!("({})", places.join(", "))
    };
    let places: Vec<String> = (0..rows.len()).map(places).collect();
    let mut insert = query_built(format!(
        "INSERT INTO {} ({}) VALUES {}",
        quoted(&table.name),
        list(&table.columns),
        places.join(", ")
    ));
    for argument in rows.into_iter().flatten() {
        insert = insert.bind(argument);
    }
    insert.execute(session).await.map_err(|error| {
        let refused = error.as_database_error().is_some_and(|of| {
            of.is_unique_violation() || of.is_foreign_key_violation() || of.is_check_violation()
        });
        match refused {
            true => Error::BadDump {
                why: format!("table {:?} refuses one of its rows", table.name),
            },
            false => database("load a copy")(error),
        }
    })?;
    Ok(())
}
