//! The relay's clients: lines of JSON and file descriptors on one socket.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// Longest command taken.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Most descriptors that wait for their command.
const MAX_FILES: usize = 8;
/// How long a client that reads nothing may hold a reply up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// What came from a client.
pub(super) enum Line {
    Text(Vec<u8>),
    /// Not from a client of ours.
    TooLong,
}

/// The receiving half.
pub(super) struct Client {
    socket: UnixStream,
    buffer: Vec<u8>,
    files: VecDeque<OwnedFd>,
}

impl Client {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Client> {
        let socket = UnixStream::from(socket);
        socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Client {
            socket,
            buffer: Vec::new(),
            files: VecDeque::new(),
        })
    }

    pub(super) fn writer(&self) -> io::Result<Writer> {
        let socket = self.socket.try_clone()?;
        Ok(Writer(Arc::new(Mutex::new(socket))))
    }

    /// The next line; `None` when all clients are gone.
    pub(super) fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Some(Line::Text(self.buffer.drain(..=at).collect()));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Some(Line::TooLong);
            }
            if self.receive().unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The descriptor that came first; each comes with its command.
    pub(super) fn take_file(&mut self) -> Option<OwnedFd> {
        self.files.pop_front()
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(&mut chunk)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut slices, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?.bytes,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        self.files.truncate(MAX_FILES);
        self.buffer.extend_from_slice(&chunk[..received]);
        Ok(received)
    }
}

/// The sending half, for replies and events.
#[derive(Clone)]
pub(super) struct Writer(Arc<Mutex<UnixStream>>);

impl Writer {
    pub(super) fn write(&self, message: &Value) -> io::Result<()> {
        let line = format!("{message}\n");
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(line.as_bytes())
    }
}
