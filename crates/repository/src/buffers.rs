//! The fixed number of pack buffers of a backup: what bounds its memory when the store is slow.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::control::{Control, POLL};
use crate::error::Result;
use crate::pack::trailer_bytes;

/// Blobs per pack that a fresh buffer has room for in its header.
const USUAL_BLOBS: usize = 2048;

/// Pack buffers, lent out one at a time.
pub(crate) struct BufferPool {
    pack_bytes: usize,
    most: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    free: Vec<Vec<u8>>,
    lent: usize,
    peak: usize,
}

impl BufferPool {
    pub(crate) fn new(pack_bytes: usize, most: usize) -> Self {
        Self {
            pack_bytes,
            most,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Lends an empty buffer; waits for one, but not beyond the end of the backup.
    pub(crate) fn lend(&self, control: &Control) -> Result<Vec<u8>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            control.check()?;
            if state.lent < self.most {
                state.lent += 1;
                state.peak = state.peak.max(state.lent);
                let fresh = || Vec::with_capacity(self.pack_bytes + trailer_bytes(USUAL_BLOBS));
                return Ok(state.free.pop().unwrap_or_else(fresh));
            }
            let waited = self.returned.wait_timeout(state, POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes a buffer back.
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lent -= 1;
        state.free.push(buffer);
        self.returned.notify_one();
    }

    /// Most buffers that were ever lent at once.
    pub(crate) fn peak(&self) -> usize {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .peak
    }

    /// Most bytes all buffers together can hold.
    pub(crate) fn bound_bytes(&self) -> usize {
        self.most * (self.pack_bytes + trailer_bytes(USUAL_BLOBS))
    }
}
