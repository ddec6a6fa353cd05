//! One backup run's shared state of mind: going on, cancelled, or failed with a first error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// How often every wait of ours looks up; a cancel is seen within this time.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Shared by all threads of a backup.
#[derive(Default)]
pub(crate) struct Control {
    external: Option<Arc<AtomicBool>>,
    cancelled: AtomicBool,
    failed: AtomicBool,
    first_error: Mutex<Option<Error>>,
}

impl Control {
    pub(crate) fn new(external: Option<Arc<AtomicBool>>) -> Self {
        Self {
            external,
            ..Self::default()
        }
    }

    /// Fails once the backup is cancelled or failed. The first caller gets the first error.
    pub(crate) fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            let mut first = self
                .first_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            return Err(first.take().unwrap_or(Error::AlreadyFailed));
        }
        let external = self
            .external
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Acquire));
        if external || self.cancelled.load(Ordering::Acquire) {
            return Err(Error::Cancelled);
        }
        Ok(())
    }

    /// Ends the backup at the next check of every thread.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Whether the backup is cancelled or failed; keeps the first error for [`Self::check`].
    pub(crate) fn stopped(&self) -> bool {
        let external = self
            .external
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Acquire));
        external || self.cancelled.load(Ordering::Acquire) || self.failed.load(Ordering::Acquire)
    }

    /// Ends the backup; the first such error is kept for whoever checks first.
    pub(crate) fn fail_with(&self, error: Error) {
        let mut first = self
            .first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !self.failed.swap(true, Ordering::AcqRel) {
            *first = Some(error);
        }
    }

    /// Ends the backup because `result` is an error, which goes on to the caller.
    pub(crate) fn watch<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

/// Of several results of one backup, the error that says most.
pub(crate) fn most_telling(errors: impl Iterator<Item = Error>) -> Option<Error> {
    let rank = |error: &Error| match error {
        Error::AlreadyFailed => 2,
        Error::Cancelled => 1,
        _ => 0,
    };
    errors.min_by_key(rank)
}
