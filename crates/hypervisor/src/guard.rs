//! Pause guard: a tiny process of its own that resumes the guest if vmtwin cannot.
//!
//! ```text
//!   vmtwin ──spawn──► guard          stdin  = read end of a pipe, vmtwin holds the other end
//!     │                 │            stdout = the QMP connection, shared
//!     ├── 'p' + ms ────►│            the pause begins: the deadline counts from here
//!     │  pause … resume │
//!     ├── 'r' ─────────►│ exits      the guest runs, nothing to do
//!     ✗ (killed) ──EOF─►│ cont       vmtwin died: resume, see that it runs, exit
//!     … (stuck) deadline│ kill, cont vmtwin hangs inside the pause: end it, then the same
//! ```
//! A monitor serves one client at a time, so the guard shares the very connection: it keeps it
//! open when vmtwin is gone, and neither needs a second socket. It touches no file, no network and
//! no catalog.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::qmp::readable;

/// Byte that tells the guard that the guest runs again.
const RELEASE: u8 = b'r';
/// Byte that tells the guard that the pause begins; the deadline in milliseconds follows (u32 LE).
const ARM: u8 = b'p';
/// How long the guard keeps trying to make the guest run.
const RESUME_FOR: Duration = Duration::from_secs(20);

/// How to start the guard: the program and the arguments that lead it to [`run`].
#[derive(Debug, Clone)]
pub struct GuardCommand {
    /// Program, usually this very binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl GuardCommand {
    /// A command of this very program, also when its file was replaced by an upgrade meanwhile.
    #[must_use]
    pub fn of_this_program(command: &str) -> GuardCommand {
        GuardCommand {
            program: PathBuf::from("/proc/self/exe"),
            args: vec![command.to_owned()],
        }
    }
}

/// A guard that watches over a pause.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard over the connection `qmp`. From now on it acts when this process ends.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn start(
        command: &GuardCommand,
        qmp: std::os::fd::BorrowedFd<'_>,
    ) -> std::io::Result<Guard> {
        let shared: OwnedFd = qmp.try_clone_to_owned()?;
        let mut child = Command::new(&command.program)
            .args(&command.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(shared))
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take();
        Ok(Guard { child, stdin })
    }

    /// Tells the guard that the pause begins, and that it may last `deadline` at the most.
    ///
    /// # Errors
    /// The guard is gone.
    pub fn arm(&self, deadline: Duration) -> std::io::Result<()> {
        let Some(mut stdin) = self.stdin.as_ref() else {
            return Ok(());
        };
        let ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let mut message = [ARM, 0, 0, 0, 0];
        message[1..].copy_from_slice(&ms.to_le_bytes());
        stdin.write_all(&message)
    }

    /// Tells the guard that the guest runs (or that it was never paused) and waits for its end.
    ///
    /// # Errors
    /// The guard had already acted: the deadline passed, and it resumed the guest itself.
    pub fn release(mut self) -> std::io::Result<()> {
        let told = match self.stdin.take() {
            Some(mut stdin) => stdin.write_all(&[RELEASE]),
            None => Ok(()),
        };
        let status = self.child.wait()?;
        told?;
        if status.success() {
            Ok(())
        } else {
            Err(std::io::Error::other(
                "the pause guard had to resume the guest",
            ))
        }
    }
}

/// The guard's own main: waits on stdin, resumes over stdout. Returns the exit code.
#[must_use]
pub fn run() -> i32 {
    let parent = rustix::process::getppid();
    match wait_for_parent() {
        Parent::Released => return 0,
        Parent::Ended => {}
        Parent::Stuck => {
            // vmtwin hangs between pause and resume. It may hold a thread of QEMU by ptrace, which
            // its end lets go; what it leaves otherwise is in the journal.
            if let Some(pid) = parent {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    match resume_over_stdout() {
        Ok(()) => 3,
        Err(_) => 4,
    }
}

/// What became of vmtwin.
enum Parent {
    Released,
    Ended,
    Stuck,
}

fn wait_for_parent() -> Parent {
    let stdin = std::io::stdin();
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(end) = deadline {
            let left = end.saturating_duration_since(Instant::now());
            if !readable(std::os::fd::AsFd::as_fd(&stdin), left).unwrap_or(true) {
                return Parent::Stuck;
            }
        }
        let mut message = [0u8; 5];
        // One read a message: the pipe holds nothing but what vmtwin wrote in one piece.
        match rustix::io::read(std::os::fd::AsFd::as_fd(&stdin), &mut message) {
            Ok(5) if message[0] == ARM => {
                let [_, ms @ ..] = message;
                let limit = Duration::from_millis(u32::from_le_bytes(ms).into());
                deadline = Some(Instant::now() + limit);
            }
            Ok(n) if n > 0 && message[n - 1] == RELEASE => return Parent::Released,
            Ok(0) | Err(_) => return Parent::Ended,
            Ok(_) => {}
        }
    }
}

fn resume_over_stdout() -> std::io::Result<()> {
    let stdout = std::io::stdout();
    let socket = UnixStream::from(std::os::fd::AsFd::as_fd(&stdout).try_clone_to_owned()?);
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.set_write_timeout(Some(Duration::from_secs(2)))?;
    make_it_run(socket)
}

/// Sends `cont` until the guest has been running for a while: a migration that fails afterwards
/// would put it back into pause.
fn make_it_run(mut socket: UnixStream) -> std::io::Result<()> {
    let end = Instant::now() + RESUME_FOR;
    let mut running_since: Option<Instant> = None;
    let mut lines = Lines { buffer: Vec::new() };
    socket.write_all(b"\n")?;
    while Instant::now() < end {
        match lines.status(&mut socket)?.as_deref() {
            Some("paused") => {
                running_since = None;
                socket.write_all(b"{\"execute\":\"cont\",\"id\":\"guard-cont\"}\n")?;
            }
            Some("running") => {
                let since = *running_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(300) {
                    return Ok(());
                }
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(std::io::Error::other("the guest does not run"))
}

struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// Asks for the run state; `None` when no answer came within a second.
    fn status(&mut self, socket: &mut UnixStream) -> std::io::Result<Option<String>> {
        socket.write_all(b"{\"execute\":\"query-status\",\"id\":\"guard-status\"}\n")?;
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            while let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                let Ok(message) = serde_json::from_slice::<Value>(&line) else {
                    continue;
                };
                if message["id"] == "guard-status" {
                    return Ok(message["return"]["status"].as_str().map(str::to_owned));
                }
            }
            let mut chunk = [0u8; 4096];
            match socket.read(&mut chunk) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) if self.buffer.len() < 1 << 20 => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                }
                Ok(_) => self.buffer.clear(),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}
