//! The memory spool: takes QEMU's migration stream in as fast as QEMU gives it.
//!
//! A receiver that stalls freezes the guest, since its write faults wait for the stream. So nothing
//! that could wait stands between the socket and memory:
//!
//! ```text
//! QEMU ─► socket ─► drain thread ─► chunks in memory ─► spill thread ─► unlinked file
//!                   (no disk I/O)   (up to a limit)     (may be slow)
//! ```
//!
//! The drain thread never waits for the spill thread. Where the disk can't keep up and memory comes
//! to its hard limit, where a deadline passes, where a write fails, or where the caller gives up,
//! the socket is shut down at once: QEMU's migration fails, the guest runs on, and the spool ends
//! in a [`SpoolError`] that says why.

mod data;
mod drain;
mod file;
mod follow;
mod options;
mod spill;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use data::SpoolData;
pub use follow::SpoolReader;
pub use options::SpoolOptions;

use file::SpillFile;
use state::Shared;

/// Bytes in a chunk: the unit in which memory is taken and moved to disk.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Why a spool ended without the whole stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The file for what memory can't hold could not be made.
    #[error("no spool file can be made in {}; choose another folder for the spool", dir.display())]
    Create {
        /// The folder of the spool.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("a thread of the memory spool could not be started")]
    Thread(#[source] io::Error),
    /// The stream could not be read.
    #[error("QEMU's stream could not be read")]
    Read(#[source] io::Error),
    /// The spool file could not be written.
    #[error("the spool file could not be written; free space or choose another folder")]
    Write(#[source] io::Error),
    /// The disk was too slow and memory came to its hard limit.
    #[error(
        "the disk could not keep up and the spool filled {memory_bytes} bytes of memory; \
         allow more memory or choose a faster folder for the spool"
    )]
    MemoryFull {
        /// Memory held at that time.
        memory_bytes: u64,
    },
    /// The stream is larger than memory and disk limits together.
    #[error(
        "the stream is larger than the spool may hold ({memory_limit_bytes} bytes of memory and \
         {disk_limit_bytes} of disk); raise one of the limits"
    )]
    DiskLimit {
        /// The limit in memory.
        memory_limit_bytes: u64,
        /// The limit on disk.
        disk_limit_bytes: u64,
    },
    /// The stream took too long.
    #[error("the stream had not ended after {} s", after.as_secs_f64())]
    Deadline {
        /// The deadline.
        after: Duration,
    },
    /// QEMU sent nothing for too long.
    #[error("QEMU sent nothing for {} s", after.as_secs_f64())]
    Stalled {
        /// How long nothing may come.
        after: Duration,
    },
    /// The caller gave up.
    #[error("given up: {reason}")]
    GivenUp {
        /// Why.
        reason: String,
    },
}

/// A spool at work. Dropped before it is finished, it gives up.
#[derive(Debug)]
pub struct Spool {
    handle: SpoolHandle,
    finished: bool,
}

/// Watches a spool and may give it up, while another thread waits in [`Spool::finish`].
#[derive(Debug, Clone)]
pub struct SpoolHandle {
    shared: Arc<Shared>,
}

impl Spool {
    /// Starts to drain `stream`, our end of the socket pair that QEMU writes into.
    ///
    /// The deadlines count from here.
    pub fn start(stream: OwnedFd, options: SpoolOptions) -> Result<Spool, SpoolError> {
        let file = match options.disk_limit_bytes {
            0 => None,
            _ => Some(
                file::open(&options.dir).map_err(|source| SpoolError::Create {
                    dir: options.dir.clone(),
                    source,
                })?,
            ),
        };
        Spool::with_file(
            stream,
            options,
            file.map(|file| Arc::new(file) as Arc<dyn SpillFile>),
        )
    }

    fn with_file(
        stream: OwnedFd,
        options: SpoolOptions,
        file: Option<Arc<dyn SpillFile>>,
    ) -> Result<Spool, SpoolError> {
        let stream = Arc::new(stream);
        let shared = Arc::new(Shared::new(options, Arc::downgrade(&stream), file));
        let spool = Spool {
            handle: SpoolHandle {
                shared: Arc::clone(&shared),
            },
            finished: false,
        };
        let spilled = Arc::clone(&shared);
        spawn("spool-spill", move || spill::run(&spilled))?;
        spawn("spool-drain", move || drain::run(&shared, &stream))?;
        Ok(spool)
    }

    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.handle.received_bytes()
    }

    /// Waits until `min` bytes have come. False if the time is over or the stream ended before.
    pub fn wait_for_bytes(&self, min: u64, timeout: Duration) -> bool {
        self.handle.wait_for_bytes(min, timeout)
    }

    /// Shuts the socket at once, so that QEMU's migration fails and the guest runs on.
    pub fn give_up(&self, reason: impl Into<String>) {
        self.handle.give_up(reason);
    }

    /// A handle for another thread.
    pub fn handle(&self) -> SpoolHandle {
        self.handle.clone()
    }

    /// Reads the stream while it comes in, from its beginning; what was read is forgotten.
    ///
    /// A reader that is slow makes the spool grow, nothing else.
    pub fn follow(mut self) -> SpoolReader {
        self.finished = true;
        SpoolReader::new(Arc::clone(&self.handle.shared))
    }

    /// Waits for the end of the stream and hands its bytes over.
    ///
    /// The end of the stream is not its success: QEMU closes its end when a migration fails as
    /// well, so ask `query-migrate`.
    pub fn finish(mut self) -> Result<SpoolData, SpoolError> {
        self.finished = true;
        self.handle.shared.wait_for_end()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.finished {
            self.give_up("the spool was dropped");
        }
    }
}

impl SpoolHandle {
    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.shared.received_bytes()
    }

    /// Waits until `min` bytes have come. False if the time is over or the stream ended before.
    pub fn wait_for_bytes(&self, min: u64, timeout: Duration) -> bool {
        self.shared.wait_for_bytes(min, timeout)
    }

    /// Shuts the socket at once, so that QEMU's migration fails and the guest runs on.
    pub fn give_up(&self, reason: impl Into<String>) {
        self.shared.fail(SpoolError::GivenUp {
            reason: reason.into(),
        });
    }

    /// The stream has ended, well or not.
    pub fn ended(&self) -> bool {
        self.shared.ended()
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), SpoolError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // It may have been begun by a thread of another priority.
            let _ = rustix::process::setpriority_process(None, 0);
            body();
        })
        .map(drop)
        .map_err(SpoolError::Thread)
}
