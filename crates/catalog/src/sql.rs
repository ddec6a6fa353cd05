//! One way to speak to either database.
//!
//! The statements of this crate are written once, in the part of SQL that SQLite and PostgreSQL
//! share (`$1` parameters, `ON CONFLICT`, TEXT, BIGINT and BOOLEAN), and so are the migrations.
//! What is left to tell the two apart is here: pools, transactions and rows. sqlx has a driver of
//! its own for "any" database; it is not used, since it would lose what each needs: pragmas and
//! the checks of a file of SQLite, TLS and time limits of PostgreSQL.

use std::ops::{Deref, DerefMut};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Postgres, Sqlite};

/// Connections to the database.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

/// A transaction; dropped without a commit it is rolled back.
pub(crate) struct Transaction(Session);

/// What statements run in.
pub(crate) enum Session {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Transaction {
    pub(crate) async fn commit(self) -> sqlx::Result<()> {
        match self.0 {
            Session::Sqlite(transaction) => transaction.commit().await,
            Session::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl From<sqlx::Transaction<'static, Sqlite>> for Transaction {
    fn from(transaction: sqlx::Transaction<'static, Sqlite>) -> Self {
        Self(Session::Sqlite(transaction))
    }
}

impl From<sqlx::Transaction<'static, Postgres>> for Transaction {
    fn from(transaction: sqlx::Transaction<'static, Postgres>) -> Self {
        Self(Session::Postgres(transaction))
    }
}

impl Deref for Transaction {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0
    }
}

/// A parameter. A missing one has a type as well: PostgreSQL asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Argument {
    Text(Option<String>),
    Integer(Option<i64>),
    Flag(Option<bool>),
}

macro_rules! argument {
    ($variant:ident: $($from:ty),+) => {$(
        impl From<$from> for Argument {
            fn from(value: $from) -> Self {
                Self::$variant(Some(value.into()))
            }
        }

        impl From<Option<$from>> for Argument {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map(Into::into))
            }
        }
    )+};
}

argument!(Text: String, &str, &String);
argument!(Integer: i64);
argument!(Flag: bool);

impl From<&Option<String>> for Argument {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}

/// A statement and its parameters.
pub(crate) struct Query {
    sql: String,
    arguments: Vec<Argument>,
}

/// A statement of this crate's own text.
pub(crate) fn query(sql: &'static str) -> Query {
    query_built(sql.to_owned())
}

/// A statement that was put together here, from names of the schema and nothing else.
pub(crate) fn query_built(sql: String) -> Query {
    Query {
        sql,
        arguments: Vec::new(),
    }
}

macro_rules! bound {
    ($query:expr, $arguments:ty) => {{
        let mut query = sqlx::query(AssertSqlSafe($query.sql));
        for argument in $query.arguments {
            query = match argument {
                Argument::Text(value) => query.bind(value),
                Argument::Integer(value) => query.bind(value),
                Argument::Flag(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Query {
    /// Binds the next parameter.
    pub(crate) fn bind(mut self, argument: impl Into<Argument>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs it, and returns how many rows it touched.
    pub(crate) async fn execute(self, session: &mut Session) -> sqlx::Result<Touched> {
        let rows = match session {
            Session::Sqlite(session) => {
                self.sqlite().execute(&mut **session).await?.rows_affected()
            }
            Session::Postgres(session) => self
                .postgres()
                .execute(&mut **session)
                .await?
                .rows_affected(),
        };
        Ok(Touched(rows))
    }

    /// Every row of the answer.
    pub(crate) async fn fetch_all(self, session: &mut Session) -> sqlx::Result<Vec<Row>> {
        Ok(match session {
            Session::Sqlite(session) => {
                let rows = self.sqlite().fetch_all(&mut **session).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Session::Postgres(session) => {
                let rows = self.postgres().fetch_all(&mut **session).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row of the answer, if it has one.
    pub(crate) async fn fetch_optional(self, session: &mut Session) -> sqlx::Result<Option<Row>> {
        Ok(match session {
            Session::Sqlite(session) => self
                .sqlite()
                .fetch_optional(&mut **session)
                .await?
                .map(Row::Sqlite),
            Session::Postgres(session) => self
                .postgres()
                .fetch_optional(&mut **session)
                .await?
                .map(Row::Postgres),
        })
    }

    /// The first row of an answer that always has one.
    pub(crate) async fn fetch_one(self, session: &mut Session) -> sqlx::Result<Row> {
        self.fetch_optional(session)
            .await?
            .ok_or(sqlx::Error::RowNotFound)
    }

    fn sqlite(self) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
        bound!(self, SqliteArguments)
    }

    fn postgres(self) -> sqlx::query::Query<'static, Postgres, PgArguments> {
        bound!(self, PgArguments)
    }
}

/// How many rows a statement touched.
pub(crate) struct Touched(u64);

impl Touched {
    pub(crate) fn rows_affected(&self) -> u64 {
        self.0
    }
}

/// Types that are read from either database.
pub(crate) trait Readable: for<'r> Read<'r, Sqlite> + for<'r> Read<'r, Postgres> {}

impl<T> Readable for T where T: for<'r> Read<'r, Sqlite> + for<'r> Read<'r, Postgres> {}

/// A type that one of the databases reads.
pub(crate) trait Read<'r, D: sqlx::Database>: sqlx::Decode<'r, D> + sqlx::Type<D> {}

impl<'r, D: sqlx::Database, T: sqlx::Decode<'r, D> + sqlx::Type<D>> Read<'r, D> for T {}

impl Row {
    /// The value of a column.
    pub(crate) fn get<T: Readable>(&self, column: &str) -> sqlx::Result<T> {
        match self {
            Self::Sqlite(row) => sqlx::Row::try_get(row, column),
            Self::Postgres(row) => sqlx::Row::try_get(row, column),
        }
    }
}
