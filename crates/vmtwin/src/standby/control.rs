//! How others talk to a keeper: one line there, one JSON line back, over a socket in its folder.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// How long a promotion, the longest request, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a client may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest line, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

fn socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Asks the keeper of the standby in `dir`.
pub(super) fn ask(dir: &Path, request: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket(dir))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    writeln!(stream, "{request}")?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut line)?;
    serde_json::from_str(&line).context("the keeper ended")
}

/// Where requests come in.
pub(super) struct Listener(UnixListener);

/// A request that waits for its answer.
pub(super) struct Request {
    pub(super) text: String,
    stream: UnixStream,
}

impl Listener {
    /// Listens in `dir`, which only we can enter.
    pub(super) fn open(dir: &Path) -> io::Result<Listener> {
        let listener = UnixListener::bind(socket(dir))?;
        listener.set_nonblocking(true)?;
        Ok(Listener(listener))
    }

    /// The next request, if one is there.
    pub(super) fn next(&self) -> Option<Request> {
        let (stream, _) = self.0.accept().ok()?;
        let read = || -> io::Result<String> {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            let mut line = String::new();
            BufReader::new((&stream).take(MAX_LINE_BYTES)).read_line(&mut line)?;
            Ok(line)
        };
        let text = read().ok()?.trim().to_owned();
        Some(Request { text, stream })
    }
}

impl Request {
    /// Answers; a client that is gone misses it.
    pub(super) fn answer(mut self, answer: &Value) {
        let _ = writeln!(self.stream, "{answer}");
    }
}
