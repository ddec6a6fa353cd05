//! How many twins run at once: each takes memory and processors from the guests of this host.
//!
//! A slot is a lock on a file in the home folder, so that whoever ends, however, gives it back.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::backup::Cx;

const POLL: Duration = Duration::from_millis(200);

/// The right to run a twin, until it is dropped.
#[derive(Debug)]
pub(crate) struct TwinSlot(#[allow(dead_code, reason = "holds the lock")] File);

impl TwinSlot {
    /// Takes a slot, and waits as long as all are taken: half as many as there are processors.
    ///
    /// # Errors
    /// The user gave up, or the home folder takes no files.
    pub(crate) fn take(cx: &Cx<'_>) -> Result<TwinSlot> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let slots = (processors / 2).max(1);
        let mut told = false;
        loop {
            if let Some(slot) = free_slot(cx.home.dir(), slots)? {
                return Ok(slot);
            }
            if !told {
                cx.ui.note(&format!("waiting: {slots} twins run at once"));
                told = true;
            }
            if cx.cancel.is_set() {
                bail!("cancelled");
            }
            thread::sleep(POLL);
        }
    }
}

fn free_slot(dir: &Path, slots: usize) -> Result<Option<TwinSlot>> {
    for slot in 0..slots {
        let path = dir.join(format!("twin-{slot}.lock"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(TwinSlot(file))),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_twins_than_slots() {
        let dir = tempfile::tempdir().unwrap();
        let take = || free_slot(dir.path(), 2).unwrap();
        let (first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        drop(first);
        let third = take();
        assert!(third.is_some() && take().is_none());
        drop((second, third));
        assert!(take().is_some());
    }
}
