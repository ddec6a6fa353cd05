//! The TPM of a restored guest: its emulator is started on the restored state.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use vmtwin_hypervisor::launch::{RunningTpm, TpmEmulator, has_tpm_emulator};
use vmtwin_hypervisor::machine::Machine;

use super::error::RestoreError;
use super::files::{FILES, StoredFile};
use super::launch_files::{TPM_LOG, TPM_SOCKET};

/// What the emulator calls its state.
const STATE_FILE: &str = "tpm2-00.permall";
/// What else it may leave beside its state.
const PASSING_FILES: [&str; 3] = [".lock", "TMP2-00.permall", "tpm2-00.volatilestate"];

/// A TPM that the guest is to have.
#[derive(Debug)]
pub(super) struct Tpm {
    emulator: TpmEmulator,
    /// Whether the snapshot holds its state.
    stored: bool,
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
            emulator: TpmEmulator {
                state_dir: dir.join(state.and_then(Path::parent).unwrap_or(Path::new(FILES))),
                socket: dir.join(TPM_SOCKET),
                log: dir.join(TPM_LOG),
            },
            stored: state.is_some(),
        };
        tpm.check(force)?;
        Ok(Some(tpm))
    }

    /// The program is there, and nothing of another TPM is in its way.
    fn check(&self, force: bool) -> Result<(), RestoreError> {
        let path = self.emulator.state_dir.join(STATE_FILE);
        if !self.stored && path.exists() {
            return Err(RestoreError::OtherTpm { path });
        }
        match fs::symlink_metadata(&self.emulator.socket) {
            Ok(found) if !found.file_type().is_socket() && !force => {
                return Err(RestoreError::Exists {
                    path: self.emulator.socket.clone(),
                });
            }
            _ => {}
        }
        self.emulator.check().map_err(RestoreError::Tpm)
    }

    /// Its control socket.
    pub(super) fn socket(&self) -> &Path {
        &self.emulator.socket
    }

    /// Where its state lies.
    pub(super) fn state_dir(&self) -> &Path {
        &self.emulator.state_dir
    }

    /// Whether the snapshot holds its state.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// The argument that tells its process from all others.
    pub(super) fn control_argument(&self) -> String {
        self.emulator.control_argument()
    }

    /// Starts the emulator, and waits until it listens.
    pub(super) fn start(&self) -> Result<RunningTpm, RestoreError> {
        self.emulator.start().map_err(RestoreError::Tpm)
    }
}

/// Removes what an emulator that has ended left in the folder of its state. It gives its state a new
/// file whenever it writes it, so that nobody can tell the file by its inode.
pub(super) fn remove_state(dir: &Path) {
    for name in PASSING_FILES.iter().chain([&STATE_FILE]) {
        let _ = fs::remove_file(dir.join(name));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_another_tpm_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let tpm = |stored| Tpm {
            emulator: TpmEmulator {
                state_dir: root.path().join("a"),
                socket: root.path().join("tpm.sock"),
                log: root.path().join("tpm.log"),
            },
            stored,
        };
        let refused = |tpm: Tpm| matches!(tpm.check(true), Err(RestoreError::OtherTpm { .. }));
        assert!(!refused(tpm(false)));
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a").join(STATE_FILE), "").unwrap();
        assert!(refused(tpm(false)));
        assert!(!refused(tpm(true)));
    }
}
