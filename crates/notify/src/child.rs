//! A program that is given something to read, with a time limit. It and all it started, if they
//! stayed in its process group, are killed at the limit.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Result};

const POLL: Duration = Duration::from_millis(20);
/// How much of what it says is read, bytes.
const MAX_SAID_BYTES: u64 = 64 << 10;
/// Longest last line that is told.
const MAX_LINE_CHARS: usize = 300;

/// Runs it to a good end.
pub(crate) fn run(name: &str, command: &mut Command, input: &str, limit: Duration) -> Result<()> {
    let started = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|source| Error::Start {
        program: name.to_owned(),
        source,
    })?;
    let group = Pid::from_child(&child);
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_owned();
        // It need not read; it ends all the same when the program has.
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let said = child.stderr.take().map(last_line_of);
    let ended = wait(&mut child, limit);
    // Also what a program that has ended left behind: it must not pile up.
    let _ = kill_process_group(group, Signal::KILL);
    let status = match ended {
        Some(status) => status,
        None => {
            let _ = child.wait();
            return Err(Error::TimedOut {
                program: name.to_owned(),
                seconds: limit.as_secs(),
            });
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = said.and_then(|reader| reader.join().ok().flatten());
    Err(Error::Failed {
        program: name.to_owned(),
        how: status.to_string(),
        said: said.map_or(String::new(), |line| format!(": {line}")),
    })
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(POLL),
            _ => return None,
        }
    }
}

/// The last line of a stream, read by a thread of its own.
fn last_line_of(from: impl Read + Send + 'static) -> thread::JoinHandle<Option<String>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut limited = from.take(MAX_SAID_BYTES);
        let _ = limited.read_to_end(&mut bytes);
        // A program must not wait for us to read on.
        let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        let plain = line.chars().filter(|c| !c.is_control());
        Some(plain.take(MAX_LINE_CHARS).collect())
    })
}
