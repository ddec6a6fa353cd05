//! A socket whose reads and writes end at a deadline, however slowly the other side drips.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// The kernel wakes a blocked call this often, to look at the deadline.
const SLICE: Duration = Duration::from_millis(50);

/// Prepares a socket for [`Deadline`].
pub(crate) fn prepare(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SLICE))?;
    stream.set_write_timeout(Some(SLICE))
}

/// A view of a socket for one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline<'a> {
    stream: &'a UnixStream,
    at: Instant,
}

impl<'a> Deadline<'a> {
    pub(crate) fn new(stream: &'a UnixStream, at: Instant) -> Self {
        Self { stream, at }
    }

    fn until<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            if Instant::now() >= self.at {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match attempt() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.until(|| stream.read(buf))
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        self.until(|| stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
