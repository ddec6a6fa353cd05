//! Uploader threads: everything a backup writes to the store goes through them.
//!
//! They are not joined: a store that hangs holds its uploader, never the backup, which gives up
//! waiting when it is cancelled. A hung write that ends later leaves an unreferenced object; a
//! snapshot that nobody waits for any more is removed again.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::buffers::BufferPool;
use crate::control::{Control, POLL};
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index_file::{IndexFile, IndexPack};
use crate::pack::{PackedBlob, append_header};
use crate::store::{FileName, Kind, Store};
use crate::unpacked;

/// Blobs per index file; restic uses the same order of size.
const INDEX_FILE_BLOBS: usize = 50_000;

/// A pack without its header.
pub(crate) struct FullPack {
    pub(crate) buffer: Vec<u8>,
    pub(crate) blobs: Vec<PackedBlob>,
}

enum Job {
    Pack(FullPack),
    File(FileName, Vec<u8>, Arc<Ticket>),
}

/// What the waiting and the writing side of one file know of each other.
#[derive(Default)]
struct Ticket {
    state: Mutex<TicketState>,
    changed: Condvar,
}

#[derive(Default)]
enum TicketState {
    #[default]
    Waiting,
    Written(io::Result<()>),
    Abandoned,
}

/// The uploaders of one backup.
pub(crate) struct Uploads {
    shared: Arc<Shared>,
    queue: Mutex<Option<Sender<Job>>>,
}

struct Shared {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    control: Arc<Control>,
    pool: BufferPool,
    pending: Mutex<usize>,
    done: Condvar,
    index: Mutex<PendingIndex>,
}

#[derive(Default)]
struct PendingIndex {
    file: IndexFile,
    blobs: usize,
}

impl Uploads {
    pub(crate) fn start(
        store: Arc<dyn Store>,
        sealer: Arc<Sealer>,
        control: Arc<Control>,
        pool: BufferPool,
        threads: usize,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            store,
            sealer,
            control,
            pool,
            pending: Mutex::new(0),
            done: Condvar::new(),
            index: Mutex::default(),
        });
        let (queue, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads {
            let (shared, jobs) = (Arc::clone(&shared), Arc::clone(&jobs));
            std::thread::Builder::new()
                .name(format!("upload-{number}"))
                .spawn(move || shared.run(&jobs))
                .map_err(|source| Error::System {
                    what: "a thread",
                    source,
                })?;
        }
        Ok(Self {
            shared,
            queue: Mutex::new(Some(queue)),
        })
    }

    pub(crate) fn pool(&self) -> &BufferPool {
        &self.shared.pool
    }

    /// Hands a pack over. The number of buffers bounds the queue.
    pub(crate) fn upload_pack(&self, pack: FullPack) -> Result<()> {
        *self
            .shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        self.send(Job::Pack(pack))
    }

    /// Waits until all packs are written.
    pub(crate) fn wait_for_packs(&self) -> Result<()> {
        let mut pending = self
            .shared
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *pending > 0 {
            self.shared.control.check()?;
            let waited = self.shared.done.wait_timeout(pending, POLL);
            pending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.shared.control.check()
    }

    /// Writes the index of all packs that are not in an index file yet.
    pub(crate) fn write_index(&self) -> Result<()> {
        match self.shared.take_index(1) {
            Some(file) => {
                let stored = unpacked::encode(&self.shared.sealer, &file)?;
                self.write_file(Kind::Index, stored).map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// Writes a file under the hash of its stored form, and waits for it.
    pub(crate) fn write_file(&self, kind: Kind, stored: Vec<u8>) -> Result<Id> {
        let name = FileName::new(kind, Id::of(&stored));
        let ticket = Arc::new(Ticket::default());
        self.send(Job::File(name, stored, Arc::clone(&ticket)))?;
        let written = ticket.wait(&self.shared.control)?;
        written.map_err(|e| Error::store("write", name, e))?;
        Ok(name.id)
    }

    fn send(&self, job: Job) -> Result<()> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = queue.as_ref().is_some_and(|queue| queue.send(job).is_ok());
        if sent {
            Ok(())
        } else {
            Err(Error::AlreadyFailed)
        }
    }
}

impl Ticket {
    /// Waits until the file is written or the backup ends.
    fn wait(&self, control: &Control) -> Result<io::Result<()>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let TicketState::Written(result) = std::mem::take(&mut *state) {
                return Ok(result);
            }
            if let Err(error) = control.check() {
                *state = TicketState::Abandoned;
                return Err(error);
            }
            let waited = self.changed.wait_timeout(state, POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_abandoned(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*state, TicketState::Abandoned)
    }

    /// Reports the result; `false` when nobody waits for it any more.
    fn report(&self, result: io::Result<()>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, TicketState::Abandoned) {
            return false;
        }
        *state = TicketState::Written(result);
        self.changed.notify_all();
        true
    }
}

impl Shared {
    fn run(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match job {
                Ok(Job::Pack(pack)) => self.run_pack(pack),
                Ok(Job::File(name, stored, ticket)) => self.run_file(&name, &stored, &ticket),
                Err(_) => return,
            }
        }
    }

    fn run_pack(&self, mut pack: FullPack) {
        if !self.control.stopped()
            && let Err(error) = self.write_pack(&mut pack)
        {
            self.control.fail_with(error);
        }
        self.pool.give_back(pack.buffer);
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.done.notify_all();
    }

    fn write_pack(&self, pack: &mut FullPack) -> Result<()> {
        append_header(&mut pack.buffer, &pack.blobs, &self.sealer)?;
        let name = FileName::new(Kind::Pack, Id::of(&pack.buffer));
        self.store
            .write(&name, &pack.buffer)
            .map_err(|e| Error::store("write", name, e))?;
        {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.blobs += pack.blobs.len();
            index.file.packs.push(IndexPack {
                id: name.id,
                blobs: pack.blobs.drain(..).map(Into::into).collect(),
            });
        }
        match self.take_index(INDEX_FILE_BLOBS) {
            Some(file) => self.write_index_file(&file),
            None => Ok(()),
        }
    }

    fn write_index_file(&self, file: &IndexFile) -> Result<()> {
        let stored = unpacked::encode(&self.sealer, file)?;
        let name = FileName::new(Kind::Index, Id::of(&stored));
        self.store
            .write(&name, &stored)
            .map_err(|e| Error::store("write", name, e))
    }

    /// Takes the pending index if it lists at least that many blobs.
    fn take_index(&self, least_blobs: usize) -> Option<IndexFile> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        (index.blobs >= least_blobs).then(|| std::mem::take(&mut *index).file)
    }

    fn run_file(&self, name: &FileName, stored: &[u8], ticket: &Ticket) {
        if ticket.is_abandoned() {
            return;
        }
        let result = self.store.write(name, stored);
        let written = result.is_ok();
        if !ticket.report(result) && written {
            // The backup was reported as cancelled, so it must not show up.
            let _ = self.store.remove(name);
        }
    }
}
