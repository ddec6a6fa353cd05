//! A catalog in a PostgreSQL database, which the hosts of a cluster share.
//!
//! The promises are those of the file (`open.rs`): a commit that returned is on the server's disk
//! (`synchronous_commit = on`, whatever the server's default), and one writer at a time. For the
//! latter every write transaction begins with an advisory lock, so that what it reads first is
//! still true when it writes; it is what `BEGIN IMMEDIATE` is to SQLite. All of ours are short, and
//! the server ends one whose client has gone silent, so that a dead host cannot keep the lock.
//! Reads see one state (`REPEATABLE READ`).

use std::path::Path;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use crate::error::{Error, Result, connecting};
use crate::open::{BUSY_TIMEOUT, Catalog};
use crate::schema;
use crate::sql::{Pool, Transaction};

/// Connections of one process; a server has about a hundred for all.
const MAX_CONNECTIONS: u32 = 2;
/// The advisory lock of all writers of the catalog: "vmtwin" in ASCII.
const WRITERS_LOCK: i64 = 0x766d_7477_696e;

impl Catalog {
    /// Opens the catalog in a PostgreSQL database, `postgres://USER@HOST:PORT/DATABASE`, whose
    /// parameters are those of libpq; makes its tables if they are missing, and brings an older
    /// schema up to date. A password is looked for in the URL, `PGPASSWORD` and `~/.pgpass`. A
    /// connection to another host is encrypted unless `sslmode` says otherwise.
    ///
    /// Open it in a runtime whose threads run while nobody waits for the catalog: a transaction
    /// that ends in an error is rolled back in the background, and holds the writers' lock until
    /// then.
    pub async fn open_postgres(url: &str) -> Result<Self> {
        let options = options_of(url)?;
        let place = place_of(&options);
        let pool = connect(options, &place).await?;
        Ok(Self {
            pool: Pool::Postgres(pool),
            path: Path::new(&place).into(),
        })
    }
}

/// A transaction that sees one state and changes nothing.
pub(crate) async fn begin_to_read(pool: &PgPool) -> sqlx::Result<Transaction> {
    pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map(Transaction::from)
}

/// A transaction that no other writer runs beside. Not `REPEATABLE READ`: its first statement
/// waits for the lock, and it must see what the writers before it left.
pub(crate) async fn begin_to_write(pool: &PgPool) -> sqlx::Result<Transaction> {
    let mut transaction = pool
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        .await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(WRITERS_LOCK)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.into())
}

fn options_of(url: &str) -> Result<PgConnectOptions> {
    let bad = |why: &str| Error::BadUrl {
        why: why.to_owned(),
    };
    if !is_postgres_url(url) {
        return Err(bad("it does not begin with postgres://"));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(why) => bad(&why.to_string()),
        _ => bad("it cannot be read"),
    })?;
    if options.get_database().is_none() {
        return Err(bad("it names no database"));
    }
    let waits_ms = BUSY_TIMEOUT.as_millis().to_string();
    let options = options
        .application_name("vmtwin")
        .options([
            ("synchronous_commit", "on"),
            ("lock_timeout", waits_ms.as_str()),
            ("idle_in_transaction_session_timeout", waits_ms.as_str()),
        ])
        .disable_statement_logging();
    let chosen = url.contains("sslmode=")
        || url.contains("ssl-mode=")
        || std::env::var_os("PGSSLMODE").is_some();
    Ok(match chosen || is_local(&options) {
        true => options,
        false => options.ssl_mode(PgSslMode::Require),
    })
}

/// Whether a text is meant to be the URL of a PostgreSQL database.
pub fn is_postgres_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

fn is_local(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some()
        || matches!(
            options.get_host(),
            "localhost" | "127.0.0.1" | "::1" | "[::1]"
        )
        || options.get_host().starts_with('/')
}

/// The database in words that may be shown: without the password.
fn place_of(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    let user = options.get_username();
    match options.get_socket() {
        Some(socket) => format!(
            "postgres:///{database}?host={}&user={user}",
            socket.display()
        ),
        None => format!(
            "postgres://{user}@{}:{}/{database}",
            options.get_host(),
            options.get_port()
        ),
    }
}

/// Connects; the database may belong to another program or to a later version of this one, so
/// nothing in it is changed before that is known.
async fn connect(options: PgConnectOptions, place: &str) -> Result<PgPool> {
    let mut probe = tokio::time::timeout(BUSY_TIMEOUT, options.connect())
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map_err(|error| connecting(place, error))?;
    let ours = schema::refuse_others_on_server(&mut probe, Path::new(place)).await;
    // Best effort: the probe is not needed any more, whatever becomes of it.
    let _ = probe.close().await;
    ours?;
    let pool = PgPoolOptions::new()
        .max_connections(MAX_CONNECTIONS)
        .acquire_timeout(BUSY_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|error| connecting(place, error))?;
    match schema::bring_up_to(schema::newest_schema(), &pool, Path::new(place)).await {
        Ok(()) => Ok(pool),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let options = options_of("postgres://vmtwin:hunter2@db.example.net/catalog").unwrap();
        assert_eq!(
            place_of(&options),
            "postgres://vmtwin@db.example.net:5432/catalog"
        );
        for wrong in ["mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d"] {
            let error = options_of(wrong).unwrap_err();
            assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn other_hosts_are_reached_by_tls_unless_said_otherwise() {
        let mode = |url| format!("{:?}", options_of(url).unwrap().get_ssl_mode());
        assert_eq!(mode("postgres://u@db.example.net/c"), "Require");
        assert_eq!(
            mode("postgres://u@db.example.net/c?sslmode=disable"),
            "Disable"
        );
        assert_eq!(mode("postgres://u@localhost/c"), "Prefer");
        assert_eq!(mode("postgres:///c?host=/run/postgresql"), "Prefer");
    }

    #[tokio::test]
    async fn commits_are_durable_whatever_the_default_of_the_server() {
        let server = vmtwin_testkit::Postgres::shared();
        server.sql("postgres", "ALTER SYSTEM SET synchronous_commit = off");
        server.sql("postgres", "SELECT pg_reload_conf()");
        let catalog = Catalog::open_postgres(&server.database()).await.unwrap();
        let mut write = catalog.write().await.unwrap();
        let crate::sql::Session::Postgres(session) = &mut *write else {
            unreachable!("opened on a server")
        };
        let set: String = sqlx::query_scalar("SHOW synchronous_commit")
            .fetch_one(&mut **session)
            .await
            .unwrap();
        assert_eq!(set, "on");
    }
}
