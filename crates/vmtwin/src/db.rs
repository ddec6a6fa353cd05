//! The catalog, for code that does not wait asynchronously.
//!
//! Recipes are plain sequential code on threads of their own; the catalog's calls are short. One
//! small runtime carries them.

use std::future::Future;

use anyhow::Result;
use vmtwin_catalog::Catalog;

use crate::home::Home;

/// An open catalog and the runtime that carries its calls.
pub(crate) struct Db {
    runtime: tokio::runtime::Runtime,
    catalog: Catalog,
}

impl Db {
    /// Opens the catalog of a home folder; makes it where it is missing.
    pub(crate) fn open(home: &Home) -> Result<Db> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let catalog = runtime.block_on(Catalog::open(&home.catalog()))?;
        Ok(Db { runtime, catalog })
    }

    /// Runs one call of the catalog.
    pub(crate) fn run<T>(
        &self,
        call: impl AsyncFnOnce(&Catalog) -> vmtwin_catalog::Result<T>,
    ) -> vmtwin_catalog::Result<T> {
        self.wait(call(&self.catalog))
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}
