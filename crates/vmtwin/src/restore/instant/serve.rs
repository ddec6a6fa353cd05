//! Serves the disks of the snapshot to the guest's QEMU.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmtwin_nbd::{ServedExport, ServedExtent, ServedImage, Server};
use vmtwin_repository::SnapshotReader;

use super::DISKS_SOCKET;
use crate::export::{Exports, Place};
use crate::restore::error::RestoreError;

/// How long after a failed read it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A server that runs until it is dropped.
pub(crate) struct Serving {
    stop: Arc<AtomicBool>,
    trouble: Trouble,
    thread: Option<JoinHandle<()>>,
    /// Removes the socket.
    _place: Arc<Place>,
}

impl Serving {
    /// Listens in `dir`, and serves from then on.
    pub(crate) fn start(reader: &SnapshotReader, dir: &Path) -> Result<Serving, RestoreError> {
        let socket = dir.join(DISKS_SOCKET);
        let failed =
            |error: String| RestoreError::file("serve disks on", &socket)(io::Error::other(error));
        remove_dead(&socket);
        let exports = Exports::open(reader, None).map_err(|e| failed(format!("{e:#}")))?;
        let place = Arc::new(Place::unix(&socket).map_err(|e| failed(format!("{e:#}")))?);
        let stop = Arc::new(AtomicBool::new(false));
        let trouble = Trouble::default();
        let patient = exports.served.into_iter().map(|export| ServedExport {
            image: Arc::new(Patient {
                image: export.image,
                stop: Arc::clone(&stop),
                trouble: Arc::clone(&trouble),
            }),
            ..export
        });
        let server = Server::new(patient.collect()).map_err(|e| failed(e.to_string()))?;
        let (thread_place, thread_stop) = (Arc::clone(&place), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("disks".to_owned());
        let thread = thread.spawn(move || {
            while let Err(error) = server.run(&thread_place.listener, &thread_stop) {
                // The guest waits for us: there is nothing to do but to go on.
                tracing::error!("serving disks: {error}");
                std::thread::sleep(AGAIN);
            }
        });
        Ok(Serving {
            stop,
            trouble,
            thread: Some(thread.map_err(|e| failed(e.to_string()))?),
            _place: place,
        })
    }
}

impl Serving {
    /// Why the last read failed, until one works again.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Trouble = Arc<Mutex<Option<String>>>;

/// An image whose reads wait for the repository where it cannot be read, instead of failing: an error
/// would go to the guest.
struct Patient {
    image: Arc<dyn ServedImage>,
    stop: Arc<AtomicBool>,
    trouble: Trouble,
}

impl Patient {
    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

impl ServedImage for Patient {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<ServedExtent> {
        self.image.extent_at(offset_bytes)
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut failed = false;
        loop {
            match self.image.read_at(offset_bytes, buf) {
                Ok(()) => {
                    if failed {
                        self.note(None);
                    }
                    return Ok(());
                }
                Err(error) if self.stop.load(Ordering::Relaxed) => return Err(error),
                Err(error) => self.note(Some(format!("the repository cannot be read: {error}"))),
            }
            failed = true;
            std::thread::sleep(AGAIN);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The lock of the folder says that no other keeper lives: a socket there is what one left.
fn remove_dead(socket: &Path) {
    let is_socket = fs::symlink_metadata(socket).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(socket).is_err() {
        let _ = fs::remove_file(socket);
    }
}
