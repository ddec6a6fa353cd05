//! The tables as the database itself describes them, so that a table or column that is added later
//! is part of every copy without a word here.

use crate::error::{Error, Result, database};
use crate::row::Fields;
use crate::sql::{Row, Session, query, query_built};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    /// By name.
    pub(super) columns: Vec<Column>,
    /// The columns of its primary key, in its order.
    pub(super) key: Vec<Column>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// The three types of the migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Flag,
}

const SQLITE_TABLES: &str = "SELECT name AS name FROM sqlite_master WHERE type = 'table' \
     AND name NOT LIKE 'sqlite~_%' ESCAPE '~' AND name <> '_sqlx_migrations'";
const POSTGRES_TABLES: &str = "SELECT table_name::TEXT AS name FROM information_schema.tables \
     WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' \
     AND table_name <> '_sqlx_migrations'";
const SQLITE_COLUMNS: &str =
    "SELECT name, UPPER(type) AS kind, pk AS place FROM pragma_table_info($1)";
const POSTGRES_COLUMNS: &str = "SELECT c.column_name::TEXT AS name, UPPER(c.data_type::TEXT) AS kind, \
     COALESCE((SELECT k.ordinal_position FROM information_schema.key_column_usage k \
       JOIN information_schema.table_constraints t ON t.constraint_name = k.constraint_name \
         AND t.constraint_schema = k.constraint_schema AND t.table_name = k.table_name \
       WHERE t.constraint_type = 'PRIMARY KEY' AND k.table_schema = c.table_schema \
         AND k.table_name = c.table_name AND k.column_name = c.column_name), 0)::BIGINT AS place \
     FROM information_schema.columns c \
     WHERE c.table_schema = current_schema() AND c.table_name = $1";
const POSTGRES_REFERENCES: &str = "SELECT table_name::TEXT AS name, \
     constraint_name::TEXT AS reference FROM information_schema.table_constraints \
     WHERE constraint_schema = current_schema() AND constraint_type = 'FOREIGN KEY'";

/// Every table of the catalog, by name.
pub(super) async fn tables(session: &mut Session) -> Result<Vec<Table>> {
    let sql = by_database(session, SQLITE_TABLES, POSTGRES_TABLES);
    let rows = fetch(session, query(sql)).await?;
    let mut names = rows
        .iter()
        .map(|row| Fields::new("(tables)", row).text("name"))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        tables.push(table(session, name).await?);
    }
    Ok(tables)
}

async fn table(session: &mut Session, name: String) -> Result<Table> {
    let sql = by_database(session, SQLITE_COLUMNS, POSTGRES_COLUMNS);
    let mut columns = Vec::new();
    let mut key = Vec::new();
    for row in &fetch(session, query(sql).bind(&name)).await? {
        let fields = Fields::new("(columns)", row);
        let column = Column {
            name: fields.text("name")?,
            kind: kind(&fields.text("kind")?)?,
        };
        match fields.count("place")? {
            0 => {}
            place => key.push((place, column.clone())),
        }
        columns.push(column);
    }
    columns.sort_by(|one, other| one.name.cmp(&other.name));
    key.sort_by_key(|(place, _)| *place);
    Ok(Table {
        name,
        columns,
        key: key.into_iter().map(|(_, column)| column).collect(),
    })
}

fn kind(declared: &str) -> Result<Kind> {
    match declared {
        "TEXT" => Ok(Kind::Text),
        "BIGINT" => Ok(Kind::Integer),
        "BOOLEAN" => Ok(Kind::Flag),
        other => Err(Error::Damaged {
            table: "(columns)",
            column: "type",
            value: other.to_owned(),
        }),
    }
}

/// Lets rows refer to rows that come later, until [`check_references`].
pub(super) async fn defer_references(session: &mut Session) -> Result<()> {
    match session {
        Session::Sqlite(_) => execute(session, "PRAGMA defer_foreign_keys = ON".to_owned()).await,
        Session::Postgres(_) => alter_references(session, "DEFERRABLE INITIALLY DEFERRED").await,
    }
}

/// Fails if a row refers to nothing, and makes references be checked at once again.
pub(super) async fn check_references(session: &mut Session) -> Result<()> {
    if let Session::Sqlite(_) = session {
        let dangling = query("PRAGMA foreign_key_check")
            .fetch_optional(session)
            .await
            .map_err(database("check references"))?;
        return match dangling {
            None => Ok(()),
            Some(_) => Err(dangles()),
        };
    }
    query("SET CONSTRAINTS ALL IMMEDIATE")
        .execute(session)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(of) if of.is_foreign_key_violation() => dangles(),
            _ => database("check references")(error),
        })?;
    alter_references(session, "NOT DEFERRABLE").await
}

fn dangles() -> Error {
    Error::BadDump {
        why: "a row of it refers to a row that it does not hold".to_owned(),
    }
}

async fn alter_references(session: &mut Session, how: &str) -> Result<()> {
    for row in &fetch(session, query(POSTGRES_REFERENCES)).await? {
        let fields = Fields::new("(references)", row);
        let (table, reference) = (fields.text("name")?, fields.text("reference")?);
        let (table, reference) = (quoted(&table), quoted(&reference));
        let alter = format!("ALTER TABLE {table} ALTER CONSTRAINT {reference} {how}");
        execute(session, alter).await?;
    }
    Ok(())
}

pub(super) async fn execute(session: &mut Session, sql: String) -> Result<()> {
    query_built(sql)
        .execute(session)
        .await
        .map_err(database("load a copy"))?;
    Ok(())
}

async fn fetch(session: &mut Session, query: crate::sql::Query) -> Result<Vec<Row>> {
    query
        .fetch_all(session)
        .await
        .map_err(database("look at its tables"))
}

fn by_database(session: &Session, sqlite: &'static str, postgres: &'static str) -> &'static str {
    match session {
        Session::Sqlite(_) => sqlite,
        Session::Postgres(_) => postgres,
    }
}

/// A name of the schema as SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names of the schema as SQL, with commas.
pub(super) fn list(columns: &[Column]) -> String {
    let names: Vec<String> = columns.iter().map(|column| quoted(&column.name)).collect();
    names.join(", ")
}
