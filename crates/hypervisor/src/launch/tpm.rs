//! The TPM emulator, `swtpm`: one process for one guest.
//!
//! With a live state, QEMU gives the emulator the TPM's state from its stream; the folder is then
//! what the emulator keeps it in. A guest that boots finds the TPM as the folder has it. The
//! emulator ends with QEMU's connection to it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process::tail;
use crate::process::without_secrets;

const SWTPM: &str = "swtpm";
/// How long it may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// An emulator to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmEmulator {
    /// Folder of its state, which it reads and writes.
    pub state_dir: PathBuf,
    /// Its control socket, for [`LaunchRequest::tpm_socket`](super::LaunchRequest::tpm_socket).
    pub socket: PathBuf,
    /// Where it writes what it has to say.
    pub log: PathBuf,
}

/// A running emulator. Dropping it ends it.
#[derive(Debug)]
pub struct RunningTpm {
    child: Child,
    armed: bool,
}

/// Why there is no emulator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The program is not there.
    #[error("swtpm could not be run; install it (package swtpm) and try again")]
    NoProgram(#[source] io::Error),
    /// Its state's folder has a name that it cannot be told.
    #[error(
        "the TPM emulator takes no folder with a comma in its name: {}; choose another",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be made.
    #[error("cannot make {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended, or does not listen.
    #[error("the TPM emulator did not start: {said}")]
    Failed {
        /// The end of its log.
        said: String,
    },
}

impl TpmEmulator {
    /// The program is there, and can be told of its files.
    ///
    /// # Errors
    /// [`TpmError::NoProgram`], [`TpmError::Folder`].
    pub fn check(&self) -> Result<(), TpmError> {
        // It has no way to write a comma in a path, and a list of sockets has a line for each.
        let path = self.state_dir.to_string_lossy();
        if path.contains(|c: char| c == ',' || c.is_control()) {
            return Err(TpmError::Folder {
                path: self.state_dir.clone(),
            });
        }
        let version = Command::new(SWTPM).arg("--version").output();
        version.map(drop).map_err(TpmError::NoProgram)
    }

    /// The argument that tells its process from all others.
    #[must_use]
    pub fn control_argument(&self) -> String {
        format!("type=unixio,path={},mode=0600", self.socket.display())
    }

    /// Starts the emulator, and waits until it listens.
    ///
    /// # Errors
    /// See [`TpmError`]; nothing runs then.
    pub fn start(&self) -> Result<RunningTpm, TpmError> {
        let _ = fs::remove_file(&self.socket);
        let open = || -> io::Result<(File, File)> {
            let log = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.log)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(|source| TpmError::File {
            path: self.log.clone(),
            source,
        })?;
        let child = self.command(out, err).spawn();
        let mut running = RunningTpm {
            child: child.map_err(TpmError::NoProgram)?,
            armed: true,
        };
        let start = Instant::now();
        while !listens(&self.socket) {
            let ended = !matches!(running.child.try_wait(), Ok(None));
            if ended || start.elapsed() > START_TIMEOUT {
                return Err(TpmError::Failed {
                    said: tail(&self.log),
                });
            }
            thread::sleep(POLL);
        }
        Ok(running)
    }

    fn command(&self, out: File, err: File) -> Command {
        let mut command = Command::new(SWTPM);
        without_secrets(&mut command)
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={},mode=0600", self.state_dir.display()))
            .arg("--ctrl")
            .arg(self.control_argument())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        command
    }
}

impl RunningTpm {
    /// Leaves it running, as long as QEMU does.
    pub fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for RunningTpm {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether somebody listens on the socket. Only looked at: the emulator serves one connection and
/// ends with it.
fn listens(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON` in the column of flags.
    const LISTENING: &str = "00010000";
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.to_string_lossy();
    table
        .lines()
        .any(|line| line.ends_with(&*path) && line.split_whitespace().nth(3) == Some(LISTENING))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn listeners_are_seen_without_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tpm.sock");
        assert!(!listens(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(listens(&path));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        drop(listener);
        assert!(!listens(&path));
    }

    #[test]
    fn no_folder_is_taken_that_it_cannot_be_told() {
        let tpm = |name: &str| TpmEmulator {
            state_dir: Path::new("/state").join(name),
            socket: "/tpm.sock".into(),
            log: "/tpm.log".into(),
        };
        for name in ["a,b", "a\nb"] {
            assert!(matches!(tpm(name).check(), Err(TpmError::Folder { .. })));
        }
    }
}
