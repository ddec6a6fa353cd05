//! What the command itself does: starts the keeper, and shows how far it is.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::keeper::Said;
use super::{PROGRESS, Progress, RECORD, read_json};
use crate::restore::error::RestoreError;

/// How often the progress is read.
const POLL: Duration = Duration::from_millis(200);
/// How many looks without a keeper and without an end mean that it died.
const LOOKS: u32 = 5;

/// What the keeper is called, in place of the program's name.
const KEEPER_NAME: &str = "vmtwin-instant-keeper";

/// Whether this process is a keeper; it leaves the session of who started it then.
pub(crate) fn is_keeper() -> bool {
    let keeper = std::env::args_os()
        .next()
        .is_some_and(|name| name == KEEPER_NAME);
    if keeper {
        let _ = rustix::process::setsid();
    }
    keeper
}

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// All is local.
    Done,
    /// The user does not want to wait; the keeper goes on.
    Left,
    /// The keeper died.
    Died,
}

/// Starts a keeper with the arguments of this command, and waits until the guest runs.
///
/// Ctrl-C before that has the keeper take all back. The keeper is in a session of its own: what ends
/// this command, or the terminal, does not end it.
pub(crate) fn start_keeper(cancelled: &dyn Fn() -> bool) -> io::Result<Said> {
    let mut child = Command::new("/proc/self/exe");
    // The words of the user, whatever they are; the keeper is told apart by its own name.
    child.arg0(KEEPER_NAME).args(crate::task::own_arguments());
    child.stdin(Stdio::null()).stdout(Stdio::piped());
    child.stderr(Stdio::null());
    let mut child = child.spawn()?;
    let pid = Pid::from_child(&child);
    let out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(out).read_line(&mut line).map(|_| line);
        let _ = sender.send(read);
    });
    let mut told = false;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(line) => return serde_json::from_str(&line?).map_err(|_| died()),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err(died()),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
        }
        if cancelled() && !told {
            told = true;
            kill_process(pid, Signal::TERM)?;
        }
    }
}

fn died() -> io::Error {
    io::Error::other("the process that restores ended without a word; run the same command again")
}

/// Shows the progress until all is local, or until `stop`.
pub(crate) fn follow(
    dir: &Path,
    stop: &dyn Fn() -> bool,
    show: &mut dyn FnMut(&Progress),
) -> Result<Followed, RestoreError> {
    let mut alone = 0;
    loop {
        let kept = is_kept(dir)?;
        if !kept && !dir.join(RECORD).exists() {
            return Ok(Followed::Done);
        }
        if stop() {
            return Ok(Followed::Left);
        }
        if let Some(progress) = read_json::<Progress>(&dir.join(PROGRESS))? {
            show(&progress);
        }
        alone = if kept { 0 } else { alone + 1 };
        if alone > LOOKS {
            return Ok(Followed::Died);
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a keeper lives: it holds the lock of the folder.
pub(crate) fn is_kept(dir: &Path) -> Result<bool, RestoreError> {
    let folder = match std::fs::File::open(dir) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(RestoreError::file("open", dir)(error)),
    };
    match flock(&folder, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Ok(true),
        // Closing it gives it back.
        _ => Ok(false),
    }
}
