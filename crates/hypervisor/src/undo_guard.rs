//! Undo guard: a tiny process that applies one undo if vmtwin dies or hangs. For what cannot wait until
//! the next start of vmtwin: file systems that are frozen.
//!
//! ```text
//!   vmtwin ──spawn──► guard          stdin = read end of a pipe, vmtwin holds the other end
//!     ├── line of JSON ►│            the undo, and after how many milliseconds it is applied anyway
//!     ├── 'r' ─────────►│ exits 0    it was undone
//!     ✗ (killed) ──EOF─►│ applies    exits 3
//!     … (stuck) deadline│ applies    exits 3
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::guard::GuardCommand;
use crate::qmp::readable;
use crate::undo::Undo;

const RELEASE: u8 = b'r';
/// Longest order.
const MAX_ORDER_BYTES: usize = 64 << 10;
/// How long an order may take to come.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    undo: Undo,
    deadline_ms: u64,
}

/// A guard that watches over one thing to undo. Dropping it has it undone, and waits for that: what
/// follows may be like what is undone, as the next twin in the same folder is.
#[derive(Debug)]
pub struct UndoGuard {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl UndoGuard {
    /// Starts a guard. From now on the undo is applied when this process ends, or after `deadline`.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn start(command: &GuardCommand, undo: &Undo, deadline: Duration) -> io::Result<UndoGuard> {
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut stdin = child.stdin.take();
        let order = Order {
            undo: undo.clone(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        };
        let line = format!("{}\n", serde_json::to_string(&order)?);
        match &mut stdin {
            Some(stdin) => stdin.write_all(line.as_bytes())?,
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(UndoGuard { child, stdin })
    }

    /// Tells the guard that all is undone, and waits for its end.
    ///
    /// # Errors
    /// It had already acted.
    pub fn release(mut self) -> io::Result<()> {
        let told = match self.stdin.take() {
            Some(mut stdin) => stdin.write_all(&[RELEASE]),
            None => Ok(()),
        };
        let status = self.child.wait()?;
        told?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other("the time was over, and the guard acted")),
        }
    }
}

impl Drop for UndoGuard {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// The guard's own main. Returns the exit code.
#[must_use]
pub fn run() -> i32 {
    let Some(order) = read_order() else {
        return 2;
    };
    let deadline = Instant::now() + Duration::from_millis(order.deadline_ms);
    if released_by(deadline) {
        return 0;
    }
    match order.undo.apply() {
        Ok(()) => 3,
        Err(_) => 4,
    }
}

/// Byte by byte, so that nothing behind the line is taken.
fn read_order() -> Option<Order> {
    let stdin = io::stdin();
    let end = Instant::now() + ORDER_TIMEOUT;
    let mut line = Vec::new();
    while line.len() < MAX_ORDER_BYTES {
        if !readable(stdin.as_fd(), end.saturating_duration_since(Instant::now())).ok()? {
            return None;
        }
        let mut byte = [0];
        match rustix::io::read(stdin.as_fd(), &mut byte) {
            Ok(1) if byte[0] == b'\n' => return serde_json::from_slice(&line).ok(),
            Ok(1) => line.push(byte[0]),
            _ => return None,
        }
    }
    None
}

fn released_by(deadline: Instant) -> bool {
    let stdin = io::stdin();
    let left = deadline.saturating_duration_since(Instant::now());
    if !readable(stdin.as_fd(), left).unwrap_or(false) {
        return false;
    }
    let mut byte = [0];
    matches!(stdin.lock().read(&mut byte), Ok(1) if byte[0] == RELEASE)
}
