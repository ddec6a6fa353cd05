//! Typing on a twin's console.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A console that was typed on. What it shows is in its log; here it is only read away, so that the
/// twin never waits for a reader.
pub(super) struct Console(UnixStream);

impl Console {
    /// Types a line on the console behind `socket`.
    pub(super) fn type_line(socket: &Path, line: &str) -> io::Result<Console> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        // What the Enter key sends. So short a text fits the socket's buffer.
        stream.write_all(format!("{line}\r").as_bytes())?;
        Ok(Console(stream))
    }

    /// Reads away what it shows.
    pub(super) fn drain(&mut self) {
        let mut bytes = [0; 4096];
        while matches!(self.0.read(&mut bytes), Ok(count) if count > 0) {}
    }
}
