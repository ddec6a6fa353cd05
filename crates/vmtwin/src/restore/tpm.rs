//! The TPM of a restored guest: `swtpm` on the restored state, one process for one guest.
//!
//! With a live state, QEMU gives the emulator the TPM's state from its stream; the file is then what
//! the emulator keeps it in. A guest that boots finds the TPM as the file has it. The emulator ends
//! with QEMU's connection to it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmtwin_hypervisor::launch::has_tpm_emulator;
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::process::without_secrets;

use super::error::RestoreError;
use super::files::{FILES, StoredFile};
use super::launch_files::{TPM_LOG, TPM_SOCKET};

const SWTPM: &str = "swtpm";
const PACKAGE: &str = "swtpm";
/// What the emulator calls its state.
const STATE_FILE: &str = "tpm2-00.permall";
/// What else it may leave beside its state.
const PASSING_FILES: [&str; 3] = [".lock", "TMP2-00.permall", "tpm2-00.volatilestate"];
/// How long it may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Most of its words that an error shows.
const MESSAGE_BYTES: usize = 2000;

/// A TPM that the guest is to have.
#[derive(Debug)]
pub(super) struct Tpm {
    state_dir: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    /// Whether the snapshot holds its state.
    stored: bool,
}

/// A running emulator. Dropping it ends it.
#[derive(Debug)]
pub(super) struct RunningTpm {
    child: Child,
    armed: bool,
}

impl Tpm {
    /// The machine's TPM, if it has one. `files` are those to be restored to `dir`.
    pub(super) fn plan(
        machine: &Machine,
        files: &[StoredFile],
        dir: &Path,
        force: bool,
    ) -> Result<Option<Tpm>, RestoreError> {
        if !has_tpm_emulator(machine) {
            return Ok(None);
        }
        let state = stored_state(machine, files);
        let tpm = Tpm {
            state_dir: dir.join(state.and_then(Path::parent).unwrap_or(Path::new(FILES))),
            socket: dir.join(TPM_SOCKET),
            log: dir.join(TPM_LOG),
            stored: state.is_some(),
        };
        tpm.check(force)?;
        Ok(Some(tpm))
    }

    /// The program is there, and can be told of its files.
    fn check(&self, force: bool) -> Result<(), RestoreError> {
        // It has no way to write a comma in a path, and a list of sockets has a line for each.
        let path = self.state_dir.to_string_lossy();
        if path.contains(|c: char| c == ',' || c.is_control()) {
            let text = "it takes no folder with a comma in its name; choose another with --to";
            return Err(self.error(text));
        }
        if !self.stored && self.state_dir.join(STATE_FILE).exists() {
            let text = "the state of another TPM is there; choose another folder with --to";
            return Err(self.error(text));
        }
        match fs::symlink_metadata(&self.socket) {
            Ok(found) if !found.file_type().is_socket() && !force => {
                return Err(RestoreError::Exists {
                    path: self.socket.clone(),
                });
            }
            _ => {}
        }
        let version = Command::new(SWTPM).arg("--version").output();
        version.map(drop).map_err(missing)
    }

    /// Its control socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where its state lies.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Whether the snapshot holds its state.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// The argument that tells its process from all others.
    pub(super) fn control_argument(&self) -> String {
        format!("type=unixio,path={},mode=0600", self.socket.display())
    }

    /// Starts the emulator, and waits until it listens.
    pub(super) fn start(&self) -> Result<RunningTpm, RestoreError> {
        let _ = fs::remove_file(&self.socket);
        let mut options = OpenOptions::new();
        let log = options.create(true).append(true).open(&self.log);
        let log = log.map_err(RestoreError::file("open", &self.log))?;
        let error = RestoreError::file("open", &self.log);
        let child = self.command(log.try_clone().map_err(error)?, log).spawn();
        let mut running = RunningTpm {
            child: child.map_err(missing)?,
            armed: true,
        };
        let start = Instant::now();
        while !listens(&self.socket) {
            let ended = !matches!(running.child.try_wait(), Ok(None));
            if ended || start.elapsed() > START_TIMEOUT {
                return Err(self.failed());
            }
            thread::sleep(POLL);
        }
        Ok(running)
    }

    fn command(&self, out: fs::File, err: fs::File) -> Command {
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

    fn failed(&self) -> RestoreError {
        let said = fs::read(&self.log).unwrap_or_default();
        let tail = &said[said.len().saturating_sub(MESSAGE_BYTES)..];
        self.error(String::from_utf8_lossy(tail).trim())
    }

    fn error(&self, message: &str) -> RestoreError {
        RestoreError::Program {
            program: SWTPM,
            path: self.state_dir.clone(),
            message: message.to_owned(),
        }
    }
}

impl RunningTpm {
    /// Leaves it running, as long as QEMU does.
    pub(super) fn keep(mut self) {
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

/// Removes what an emulator that has ended left in the folder of its state. It gives its state a new
/// file whenever it writes it, so that nobody can tell the file by its inode.
pub(super) fn remove_state(dir: &Path) {
    for name in PASSING_FILES.iter().chain([&STATE_FILE]) {
        let _ = fs::remove_file(dir.join(name));
    }
}

fn missing(source: io::Error) -> RestoreError {
    RestoreError::NoProgram {
        program: SWTPM,
        package: PACKAGE,
        source,
    }
}

/// The state among the files that are to be restored, under the name that the emulator looks for.
fn stored_state<'a>(machine: &Machine, files: &'a [StoredFile]) -> Option<&'a Path> {
    let listed = machine.files.iter().find(|file| file.role == "tpm-state")?;
    let path = Path::new(listed.stored_as.trim_start_matches('/'));
    let stored = files
        .iter()
        .map(StoredFile::path)
        .find(|file| *file == path)?;
    stored.ends_with(STATE_FILE).then_some(stored)
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
    fn no_folder_is_taken_that_it_cannot_use() {
        let root = tempfile::tempdir().unwrap();
        let tpm = |name: &str, stored| Tpm {
            state_dir: root.path().join(name),
            socket: root.path().join("tpm.sock"),
            log: root.path().join("tpm.log"),
            stored,
        };
        let refused = |tpm: Tpm| matches!(tpm.check(true), Err(RestoreError::Program { .. }));
        assert!(!refused(tpm("a", false)));
        assert!(refused(tpm("a,b", true)));
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a").join(STATE_FILE), "").unwrap();
        assert!(refused(tpm("a", false)));
        assert!(!refused(tpm("a", true)));
    }

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
}
