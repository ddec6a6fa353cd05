//! Restore guard: a process that takes a restore back if vmtwin dies in it.
//!
//! ```text
//!   vmtwin ──spawn──► guard          stdin  = read end of a pipe, vmtwin holds the other end
//!     │                 │            stdout = the lock of the folder, shared
//!     ├── line of JSON ►│ keeps it   one [`TakeBack`] for each thing, before it is done
//!     │       …         │
//!     ├── `release` ───►│ exits      the restore is good: all stays, the guest runs on
//!     ✗ (killed) ──EOF─►│ applies    in reverse: guest, files, folders
//! ```
//! It needs no catalog, since a restore must not. A line in the pipe is as good as written down: the
//! guard reads all of them, whenever vmtwin dies. No process that vmtwin starts holds the pipe once
//! it runs, so that at its end they can all be found. The folder stays locked until the guard is
//! done, so that a restore begun at once into the same folder does not meet what is about to go.

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use vmtwin_hypervisor::guard::GuardCommand;

use super::error::RestoreError;
use super::folder::Folder;
use super::take_back::TakeBack;

/// The line that ends the guard's watch.
const RELEASE: &str = "release";
/// Exit code of a guard that had to act.
const TAKEN_BACK: i32 = 3;
/// Exit code of a guard that could not take back all.
const FAILED: i32 = 4;

/// A guard that watches over a restore. Dropping it has it take everything back.
#[derive(Debug)]
pub(super) struct Guard {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
}

impl Guard {
    /// No guard at all.
    pub(super) fn none() -> Guard {
        Guard { running: None }
    }

    /// Starts a guard over a restore into `folder`; without a command there is none.
    pub(super) fn start(
        command: Option<&GuardCommand>,
        folder: &Folder,
    ) -> Result<Guard, RestoreError> {
        let Some(command) = command else {
            return Ok(Guard::none());
        };
        let running = spawn(command, folder).map_err(RestoreError::Guard)?;
        let guard = Guard {
            running: Some(running),
        };
        for dir in folder.made() {
            guard.add(&TakeBack::Folder(dir.as_path().into()))?;
        }
        Ok(guard)
    }

    /// Notes what is to be taken back; call it before it is done.
    pub(super) fn add(&self, what: &TakeBack) -> Result<(), RestoreError> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        let line =
            serde_json::to_string(what).map_err(|error| RestoreError::Guard(error.into()))?;
        let written = (&running.stdin).write_all(format!("{line}\n").as_bytes());
        written.map_err(RestoreError::Guard)
    }

    /// Leaves everything as it is.
    pub(super) fn release(mut self) {
        if let Some(running) = self.running.take() {
            let told = (&running.stdin).write_all(format!("{RELEASE}\n").as_bytes());
            if let Err(error) = told.and_then(|()| running.end()) {
                tracing::warn!(%error, "the guard of the restore ended early");
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(running) = self.running.take()
            && let Err(error) = running.end()
        {
            tracing::warn!(%error, "the guard of the restore ended early");
        }
    }
}

impl Running {
    /// Closes the pipe, and waits.
    fn end(mut self) -> io::Result<()> {
        drop(self.stdin);
        self.child.wait().map(drop)
    }
}

fn spawn(command: &GuardCommand, folder: &Folder) -> io::Result<Running> {
    let lock = match folder.lock_fd()? {
        Some(lock) => Stdio::from(lock),
        None => Stdio::null(),
    };
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .stdin(Stdio::piped())
        .stdout(lock)
        .process_group(0)
        .spawn()?;
    match child.stdin.take() {
        Some(stdin) => Ok(Running { child, stdin }),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// The guard's own main. Returns the exit code.
pub(crate) fn run_guard() -> i32 {
    let Some(mut list) = read_list(io::stdin().lock()) else {
        return 0;
    };
    let mut code = TAKEN_BACK;
    while let Some(what) = list.pop() {
        if let Err(error) = what.apply() {
            eprintln!("warning: a restore that was cut off could not be taken back: {error}");
            code = FAILED;
        }
    }
    code
}

/// What is to be taken back; `None` if vmtwin said that all may stay.
fn read_list(input: impl BufRead) -> Option<Vec<TakeBack>> {
    let mut list = Vec::new();
    for line in input.lines().map_while(Result::ok) {
        if line == RELEASE {
            return None;
        }
        // A line that was cut is of something that was not done.
        list.extend(serde_json::from_str::<TakeBack>(&line));
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn only_the_word_releases() {
        let folder = TakeBack::Folder(Path::new("/nowhere").into());
        let line = serde_json::to_string(&folder).unwrap();
        let read = |text: &str| read_list(text.as_bytes());
        assert_eq!(read(""), Some(Vec::new()));
        assert_eq!(read(&format!("{line}\n")), Some(vec![folder.clone()]));
        assert_eq!(read(&format!("{line}\n{line}\nrelease\n")), None);
        let cut = format!("{line}\n{}", &line[..line.len() - 1]);
        assert_eq!(read(&cut), Some(vec![folder.clone()]));
        assert_eq!(read(&format!("{line}\nrelea")), Some(vec![folder]));
    }
}
