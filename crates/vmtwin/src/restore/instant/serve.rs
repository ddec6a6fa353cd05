//! Serves the disks of the snapshot to the guest's QEMU.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmtwin_nbd::Server;
use vmtwin_repository::SnapshotReader;

use super::DISKS_SOCKET;
use crate::export::{Exports, Place};
use crate::restore::error::RestoreError;

/// A server that runs until it is dropped.
pub(crate) struct Serving {
    stop: Arc<AtomicBool>,
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
        let server = Server::new(exports.served).map_err(|e| failed(e.to_string()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (thread_place, thread_stop) = (Arc::clone(&place), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("disks".to_owned());
        let thread = thread.spawn(move || {
            while let Err(error) = server.run(&thread_place.listener, &thread_stop) {
                // The guest waits for us: there is nothing to do but to go on.
                tracing::error!("serving disks: {error}");
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        });
        Ok(Serving {
            stop,
            thread: Some(thread.map_err(|e| failed(e.to_string()))?),
            _place: place,
        })
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
