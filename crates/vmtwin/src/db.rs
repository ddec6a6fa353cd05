//! The catalog, for code that does not wait asynchronously.
//!
//! Recipes are plain sequential code on threads of their own; the catalog's calls are short. One
//! small runtime carries them.

use std::future::Future;
use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::Result;
use vmtwin_catalog::{Catalog, DumpSummary};

use crate::home::Home;

/// An open catalog and the runtime that carries its calls.
pub(crate) struct Db {
    runtime: tokio::runtime::Runtime,
    catalog: Catalog,
}

impl Db {
    /// Opens the catalog of a home folder, or the database that it is set to use; makes it where
    /// it is missing.
    pub(crate) fn open(home: &Home) -> Result<Db> {
        match home.database()? {
            Some(url) => Db::open_database(&url),
            None => Db::open_file(home),
        }
    }

    /// Opens the catalog file of a home folder.
    pub(crate) fn open_file(home: &Home) -> Result<Db> {
        let runtime = runtime()?;
        let catalog = runtime.block_on(Catalog::open(&home.catalog()))?;
        Ok(Db { runtime, catalog })
    }

    /// Opens the catalog in a PostgreSQL database.
    pub(crate) fn open_database(url: &str) -> Result<Db> {
        let runtime = runtime()?;
        let catalog = runtime.block_on(Catalog::open_postgres(url))?;
        Ok(Db { runtime, catalog })
    }

    /// Where the catalog is: a file, or a URL without a password.
    pub(crate) fn place(&self) -> String {
        self.catalog.place()
    }

    /// Runs one call of the catalog.
    pub(crate) fn run<T>(
        &self,
        call: impl AsyncFnOnce(&Catalog) -> vmtwin_catalog::Result<T>,
    ) -> vmtwin_catalog::Result<T> {
        self.wait(call(&self.catalog))
    }

    /// Writes a complete copy of it.
    pub(crate) fn dump(&self, to: &mut (dyn Write + Send)) -> vmtwin_catalog::Result<DumpSummary> {
        self.wait(self.catalog.dump(to))
    }

    /// Makes it what a copy holds.
    pub(crate) fn load(
        &self,
        from: &mut (dyn BufRead + Send),
        scratch: &Path,
    ) -> vmtwin_catalog::Result<DumpSummary> {
        self.wait(self.catalog.load(from, scratch))
    }

    /// Moves to another catalog.
    pub(crate) fn move_to(&self, to: &Db, scratch: &Path) -> vmtwin_catalog::Result<DumpSummary> {
        self.wait(self.catalog.move_to(&to.catalog, scratch))
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// A runtime with a thread of its own: transactions that failed are rolled back on it while the
/// recipe does something else.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}
