//! The catalog, for code that does not wait asynchronously.
//!
//! Recipes are plain sequential code on threads of their own; the catalog's calls are short. One
//! small runtime carries them.

use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::Result;
use tokio::runtime::{Handle, Runtime};
use vmtwin_catalog::{Catalog, DumpSummary, Loaded};

use crate::cancel::Cancel;
use crate::home::Home;

/// An open catalog and the runtime that carries its calls.
pub(crate) struct Db {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
    catalog: Catalog,
    cancel: Cancel,
}

impl Db {
    /// Opens the catalog of a home folder, or the database that it is set to use; makes it where
    /// it is missing.
    pub(crate) fn open(home: &Home) -> Result<Db> {
        match home.database()? {
            Some(url) => Db::open_database(home, &url),
            None => Db::open_file(home),
        }
    }

    /// Opens the catalog file of a home folder.
    pub(crate) fn open_file(home: &Home) -> Result<Db> {
        let runtime = runtime()?;
        let catalog = runtime.block_on(Catalog::open(&home.catalog()))?;
        Ok(Db::of(runtime, catalog, home))
    }

    /// Opens the catalog in a PostgreSQL database.
    pub(crate) fn open_database(home: &Home, url: &str) -> Result<Db> {
        let runtime = runtime()?;
        let catalog = runtime.block_on(Catalog::open_postgres(url))?;
        Ok(Db::of(runtime, catalog, home))
    }

    fn of(runtime: Runtime, catalog: Catalog, home: &Home) -> Db {
        Db {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            catalog,
            cancel: home.cancel(),
        }
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

    /// Writes a complete copy of it; Ctrl-C ends it.
    pub(crate) fn dump(&self, to: &mut (dyn Write + Send)) -> vmtwin_catalog::Result<DumpSummary> {
        let mut to = UntilCancelled(to, &self.cancel);
        self.wait(self.catalog.dump(&mut to))
    }

    /// Makes it what a copy holds; Ctrl-C ends it, and nothing is changed.
    pub(crate) fn load(
        &self,
        from: &mut (dyn BufRead + Send),
        scratch: &Path,
        force: bool,
    ) -> vmtwin_catalog::Result<Loaded> {
        let mut from = UntilCancelled(from, &self.cancel);
        let mut from = BufReader::new(&mut from);
        self.wait(self.catalog.load(&mut from, scratch, force))
    }

    /// Moves to another catalog.
    pub(crate) fn move_to(
        &self,
        to: &Db,
        scratch: &Path,
        force: bool,
    ) -> vmtwin_catalog::Result<DumpSummary> {
        self.wait(self.catalog.move_to(&to.catalog, scratch, force))
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

impl Drop for Db {
    /// A task that is let go may be the last that has it, and a runtime is not waited for in a task.
    fn drop(&mut self) {
        if Handle::try_current().is_ok()
            && let Some(runtime) = self.runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}

/// A runtime with a thread of its own: transactions that failed are rolled back on it while the
/// recipe does something else.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

/// A stream that fails once the user asked to stop.
struct UntilCancelled<'a, S: ?Sized>(&'a mut S, &'a Cancel);

impl<S: ?Sized> UntilCancelled<'_, S> {
    fn check(&self) -> io::Result<()> {
        match self.1.is_set() {
            true => Err(io::Error::other("stopped by a signal")),
            false => Ok(()),
        }
    }
}

impl<S: Write + ?Sized> Write for UntilCancelled<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<S: Read + ?Sized> Read for UntilCancelled<'_, S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.0.read(into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_when_the_user_asks_to_stop() {
        let cancel = Cancel::on_signals().unwrap();
        let mut to = Vec::new();
        let mut stream = UntilCancelled(&mut to, &cancel);
        stream.write_all(b"a").unwrap();
        cancel
            .flag()
            .store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(stream.write_all(b"b").is_err());
        let mut from = &b"c"[..];
        let mut stream = UntilCancelled(&mut from, &cancel);
        assert!(stream.read(&mut [0]).is_err());
        assert_eq!(to, b"a");
    }
}
