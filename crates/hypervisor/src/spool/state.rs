//! What the drain thread, the spill thread and the caller share.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

use super::file::SpillFile;
use super::{CHUNK_BYTES, SpoolData, SpoolError, SpoolOptions};

/// Where a chunk is. Every chunk but the last is full.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// In memory.
    Memory(Arc<Vec<u8>>),
    /// In the file, from this offset.
    Disk {
        /// Offset in the file.
        offset: u64,
        /// Its length.
        len: usize,
    },
    /// Read by a follower, and forgotten.
    Taken,
}

#[derive(Debug)]
enum End {
    Stream,
    Failed(SpoolError),
    Taken,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Slot>,
    next_to_spill: usize,
    memory_bytes: u64,
    most_memory_bytes: u64,
    disk_bytes: u64,
    end: Option<End>,
}

/// The shared part of a spool.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: SpoolOptions,
    pub(super) file: Option<Arc<dyn SpillFile>>,
    started: Instant,
    received_bytes: AtomicU64,
    /// The least count that somebody waits for; `u64::MAX` for none. Keeps the drain thread from
    /// taking the lock at every read.
    wanted_bytes: AtomicU64,
    socket: Weak<OwnedFd>,
    state: Mutex<State>,
    /// Received enough, a chunk for a follower, or ended.
    progress: Condvar,
    /// Memory is over its limit, or ended.
    spill: Condvar,
}

impl Shared {
    pub(super) fn new(
        options: SpoolOptions,
        socket: Weak<OwnedFd>,
        file: Option<Arc<dyn SpillFile>>,
    ) -> Shared {
        Shared {
            options,
            file,
            started: Instant::now(),
            received_bytes: AtomicU64::new(0),
            wanted_bytes: AtomicU64::new(u64::MAX),
            socket,
            state: Mutex::default(),
            progress: Condvar::new(),
            spill: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes.load(SeqCst)
    }

    /// Counts bytes and wakes whoever waits for them.
    pub(super) fn add_received(&self, count: u64) {
        let received = self.received_bytes.fetch_add(count, SeqCst) + count;
        if received >= self.wanted_bytes.load(SeqCst) {
            let _state = self.lock();
            self.wanted_bytes.store(u64::MAX, SeqCst);
            self.progress.notify_all();
        }
    }

    pub(super) fn wait_for_bytes(&self, min: u64, timeout: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            // Say what is wanted before looking: the drain thread counts before it looks.
            self.wanted_bytes.fetch_min(min, SeqCst);
            if self.received_bytes() >= min {
                return true;
            }
            let left = timeout.saturating_sub(start.elapsed());
            if state.end.is_some() || left.is_zero() {
                return false;
            }
            (state, _) = self
                .progress
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Takes memory for one more chunk into account. False if the spool has ended; it also ends
    /// here where memory is at its hard limit.
    pub(super) fn reserve_chunk(&self) -> bool {
        let mut state = self.lock();
        if state.end.is_some() {
            return false;
        }
        let after = state.memory_bytes + CHUNK_BYTES as u64;
        if after > self.options.hard_memory_limit_bytes() {
            let memory_bytes = state.memory_bytes;
            drop(state);
            self.fail(SpoolError::MemoryFull { memory_bytes });
            return false;
        }
        state.memory_bytes = after;
        state.most_memory_bytes = state.most_memory_bytes.max(after);
        if after > self.options.memory_limit_bytes {
            self.spill.notify_one();
        }
        true
    }

    /// Takes a filled chunk over.
    pub(super) fn push(&self, chunk: Vec<u8>) {
        let mut state = self.lock();
        state.slots.push(Slot::Memory(Arc::new(chunk)));
        if state.memory_bytes > self.options.memory_limit_bytes {
            self.spill.notify_one();
        }
        self.progress.notify_all();
    }

    /// Waits for chunk number `index` and forgets it; `None` at the end of the stream.
    pub(super) fn take_chunk(&self, index: usize) -> Result<Option<Slot>, SpoolError> {
        let mut state = self.lock();
        loop {
            if matches!(state.end, Some(End::Failed(_)))
                && let Some(End::Failed(error)) = state.end.replace(End::Taken)
            {
                return Err(error);
            }
            if let Some(slot) = state.slots.get_mut(index) {
                let slot = std::mem::replace(slot, Slot::Taken);
                if matches!(slot, Slot::Memory(_)) {
                    state.memory_bytes -= CHUNK_BYTES as u64;
                }
                return Ok(Some(slot));
            }
            match state.end {
                Some(End::Stream) => return Ok(None),
                Some(_) => {
                    let reason = "the spool has ended".to_owned();
                    return Err(SpoolError::GivenUp { reason });
                }
                None => {}
            }
            state = self
                .progress
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a chunk that memory has no room for. None once the spool has ended.
    pub(super) fn next_to_spill(&self) -> Option<(usize, Arc<Vec<u8>>, u64)> {
        let mut state = self.lock();
        loop {
            if state.end.is_some() {
                return None;
            }
            while let Some(Slot::Taken) = state.slots.get(state.next_to_spill) {
                state.next_to_spill += 1;
            }
            if state.memory_bytes > self.options.memory_limit_bytes
                && let Some(Slot::Memory(chunk)) = state.slots.get(state.next_to_spill)
            {
                let chunk = Arc::clone(chunk);
                let index = state.next_to_spill;
                state.next_to_spill += 1;
                return Some((index, chunk, state.disk_bytes));
            }
            state = self
                .spill
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A chunk is on disk: forget it in memory. Nothing changes after the end, when the chunks
    /// belong to the reader.
    pub(super) fn spilled(&self, index: usize, chunk: Arc<Vec<u8>>, offset: u64) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        let len = chunk.len();
        // Freed before it is no longer counted.
        drop(chunk);
        state.disk_bytes += len as u64;
        // A follower may have taken it meanwhile, and the count with it.
        if let Some(slot @ Slot::Memory(_)) = state.slots.get_mut(index) {
            *slot = Slot::Disk { offset, len };
            state.memory_bytes -= CHUNK_BYTES as u64;
        }
    }

    /// Ends the spool with the first reason given, and shuts the socket.
    ///
    /// In this order: the drain thread would take a socket shut first for the end of the stream.
    /// Memory is freed last, since that may take a while.
    pub(super) fn fail(&self, error: SpoolError) {
        let mut state = self.lock();
        let mut slots = Vec::new();
        if state.end.is_none() {
            slots = std::mem::take(&mut state.slots);
            state.end = Some(End::Failed(error));
        }
        drop(state);
        self.shut_socket();
        self.progress.notify_all();
        self.spill.notify_all();
        drop(slots);
    }

    /// The stream is complete; `last` is its last, partly filled chunk.
    pub(super) fn end_of_stream(&self, last: Vec<u8>) {
        let mut state = self.lock();
        if state.end.is_none() {
            if last.is_empty() {
                state.memory_bytes -= CHUNK_BYTES as u64;
            } else {
                state.slots.push(Slot::Memory(Arc::new(last)));
            }
            state.end = Some(End::Stream);
        }
        self.progress.notify_all();
        self.spill.notify_all();
    }

    pub(super) fn wait_for_end(&self) -> Result<SpoolData, SpoolError> {
        let mut state = self.lock();
        while state.end.is_none() {
            state = self
                .progress
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match state.end.replace(End::Taken) {
            Some(End::Failed(error)) => Err(error),
            _ => Ok(SpoolData::new(
                std::mem::take(&mut state.slots),
                self.received_bytes(),
                state.memory_bytes,
                state.disk_bytes,
                self.file.clone(),
            )),
        }
    }

    #[cfg(test)]
    pub(super) fn most_memory_bytes(&self) -> u64 {
        self.lock().most_memory_bytes
    }

    fn shut_socket(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // A pipe can't be shut; the drain thread closes it when it sees the end.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
    }
}
