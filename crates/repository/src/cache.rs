//! A small cache of plain blobs, the least recently used go first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::Id;

/// Plain blobs up to a number of bytes.
pub(crate) struct BlobCache {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Id, (u64, Arc<[u8]>)>,
    bytes: usize,
    clock: u64,
}

impl BlobCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            state: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, id: &Id) -> Option<Arc<[u8]>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        let (used, blob) = state.blobs.get_mut(id)?;
        *used = now;
        Some(Arc::clone(blob))
    }

    pub(crate) fn put(&self, id: Id, blob: Arc<[u8]>) {
        if blob.len() > self.limit_bytes {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        state.bytes += blob.len();
        if let Some((_, old)) = state.blobs.insert(id, (now, blob)) {
            state.bytes -= old.len();
        }
        while state.bytes > self.limit_bytes {
            // A scan: the cache holds at most some hundred blobs.
            let Some(oldest) = state.blobs.iter().min_by_key(|(_, (used, _))| *used) else {
                return;
            };
            let oldest = *oldest.0;
            if let Some((_, old)) = state.blobs.remove(&oldest) {
                state.bytes -= old.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes() {
        let cache = BlobCache::new(25);
        let id = |n: u8| Id::of(&[n]);
        for n in 0..2 {
            cache.put(id(n), Arc::from(vec![n; 10]));
        }
        assert!(cache.get(&id(0)).is_some());
        cache.put(id(2), Arc::from(vec![2; 10]));
        assert!(cache.get(&id(1)).is_none());
        assert!(cache.get(&id(0)).is_some());
        cache.put(id(3), Arc::from(vec![3; 26]));
        assert!(cache.get(&id(3)).is_none());
    }
}
