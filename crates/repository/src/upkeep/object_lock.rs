//! Object locks, renewed: a repository's objects live as long as snapshots need them, a lock only as long
//! as it was written for.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result};
use crate::image_source::{Progress, ProgressDelta};
use crate::repository::Repository;
use crate::store::{FileName, Kind};

/// Requests at one time: each waits for the service.
const AT_ONCE: usize = 16;

impl Repository {
    /// Locks all objects that are there, but locks, for as long as new ones are locked. Returns how many
    /// those are. Progress counts objects as bytes.
    ///
    /// # Errors
    /// When the store locks nothing, or an object may not be locked; others then may be.
    pub fn renew_object_locks(&self, progress: &dyn Progress) -> Result<u64> {
        let mut files = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Lock) {
            let listed = self.store().list(kind);
            let listed = listed.map_err(|e| Error::store("list", kind.folder(), e))?;
            files.extend(listed.into_iter().map(|file| FileName::new(kind, file.id)));
        }
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let is_failed = || {
            failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_some()
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(files.len()) {
                scope.spawn(|| {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if progress.cancelled() || is_failed() {
                            return;
                        }
                        match self.store().retain(file) {
                            // Pruned since it was listed.
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(error) => {
                                let error = Error::store("lock", file.path(), error);
                                let mut slot =
                                    failed.lock().unwrap_or_else(PoisonError::into_inner);
                                slot.get_or_insert(error);
                                return;
                            }
                            Ok(()) => {}
                        }
                        progress.advance(ProgressDelta {
                            bytes_processed: 1,
                            ..ProgressDelta::default()
                        });
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        match progress.cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(files.len() as u64),
        }
    }
}
