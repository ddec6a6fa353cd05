//! A read-only NBD server: fixed newstyle, structured replies, `base:allocation`.
//!
//! ```text
//!   Server::run ─ accept ─► thread per connection ─ handshake ─► Session
//!                                   └ reads requests ─► queue ─► workers: read, answer in any order
//! ```
//! Clients are not trusted. What bounds them: the number of connections, the time of the handshake,
//! the length of options and names, the requests in flight of a connection, and the largest piece of
//! a reply. A client that reads no replies holds up its own connection only, and loses it after some
//! time. Everything that would write is refused with "not permitted".
//!
//! There is no TLS: whoever reaches the socket reads the disks.

mod answer;
mod connection;
pub(crate) mod handshake;
pub(crate) mod request;
mod stream;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

pub use stream::Listener;

pub(crate) use answer::{Answerer, Gate};
use stream::Stream;

/// Connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// How often the stop flag is looked at.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Longest name or description of an export, bytes.
const MAX_NAME_BYTES: usize = 1024;

/// A stretch of a served image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedExtent {
    /// Length in bytes, more than zero; may reach beyond the end.
    pub len_bytes: u64,
    /// Whether it is known to be zero, without reading it.
    pub zero: bool,
}

/// What can be served. Called from many threads at once.
pub trait ServedImage: Send + Sync {
    /// Length in bytes; never changes.
    fn size_bytes(&self) -> u64;

    /// The extent at an offset that is less than the length.
    ///
    /// # Errors
    /// The client gets an I/O error.
    fn extent_at(&self, offset_bytes: u64) -> io::Result<ServedExtent>;

    /// Fills `buf`; the range is within the length.
    ///
    /// # Errors
    /// The client gets an I/O error.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// An image under a name.
pub struct ServedExport {
    /// Its name; at most 1024 bytes.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// The image.
    pub image: Arc<dyn ServedImage>,
}

impl std::fmt::Debug for ServedExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedExport")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why exports cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Two exports of the same name.
    #[error("two exports are named {0:?}")]
    Twice(String),
    /// A name or description beyond the limit.
    #[error("the name or description of an export is longer than 1024 bytes")]
    TooLong,
}

/// A server of some exports. An empty name stands for the only one.
#[derive(Debug)]
pub struct Server {
    exports: Vec<ServedExport>,
    gate: Gate,
    /// Open connections, to be shut at the end.
    open: Mutex<HashMap<u64, Arc<Stream>>>,
}

impl Server {
    /// A server of `exports`.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn new(exports: Vec<ServedExport>) -> Result<Server, ServerError> {
        for (at, export) in exports.iter().enumerate() {
            if export.name.len().max(export.description.len()) > MAX_NAME_BYTES {
                return Err(ServerError::TooLong);
            }
            if exports[..at].iter().any(|e| e.name == export.name) {
                return Err(ServerError::Twice(export.name.clone()));
            }
        }
        Ok(Server {
            exports,
            gate: Gate::default(),
            open: Mutex::default(),
        })
    }

    /// Serves until `stop` is set; then all connections are shut.
    ///
    /// # Errors
    /// Of the listening socket. A connection's errors end that connection only.
    pub fn run(&self, listener: &Listener, stop: &AtomicBool) -> io::Result<()> {
        listener.prepare()?;
        thread::scope(|scope| {
            let mut number = 0u64;
            let result = loop {
                if stop.load(Ordering::Relaxed) {
                    break Ok(());
                }
                match listener.accept(STOP_POLL) {
                    Ok(Some(stream)) => {
                        number += 1;
                        let Some(stream) = self.admit(number, stream) else {
                            continue;
                        };
                        let spawned = thread::Builder::new().spawn_scoped(scope, move || {
                            // Its errors are the client's own doing, and its own loss.
                            let _ = connection::serve(&stream, &self.exports, &self.gate);
                            stream.shut();
                            self.connections().remove(&number);
                        });
                        if spawned.is_err() {
                            self.connections().remove(&number);
                        }
                    }
                    Ok(None) => {}
                    Err(error) if is_fatal(&error) => break Err(error),
                    // A client that went away again, or no descriptor left for now.
                    Err(_) => thread::sleep(STOP_POLL),
                }
            };
            self.connections().values().for_each(|stream| stream.shut());
            result
        })
    }

    fn admit(&self, number: u64, stream: Stream) -> Option<Arc<Stream>> {
        let mut open = self.connections();
        if open.len() >= MAX_CONNECTIONS {
            return None;
        }
        let stream = Arc::new(stream);
        open.insert(number, Arc::clone(&stream));
        Some(stream)
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Stream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fatal(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let fatal = [Errno::BADF, Errno::INVAL, Errno::NOTSOCK];
    Errno::from_io_error(error).is_some_and(|errno| fatal.contains(&errno))
}
