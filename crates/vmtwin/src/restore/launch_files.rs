//! Files that QEMU and the TPM emulator make in the folder of a restore: sockets, logs, state.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RestoreError;
use super::instant::{DISKS_SOCKET, STREAM_SOCKET};
use super::take_back::RawPath;
use super::tpm;

/// QEMU's monitor.
pub(super) const QMP_SOCKET: &str = "qmp.sock";
/// The TPM emulator's control socket.
pub(super) const TPM_SOCKET: &str = "tpm.sock";
/// What the first serial console prints; further consoles have numbers.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// What QEMU prints.
pub(super) const QEMU_LOG: &str = "qemu.log";
/// What the TPM emulator prints.
pub(super) const TPM_LOG: &str = "tpm.log";

/// The files of one launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaunchFiles {
    dir: RawPath,
    /// Names of logs that were there before.
    old_logs: Vec<String>,
    /// Where the TPM emulator keeps its state, if there is one.
    tpm_state: Option<RawPath>,
}

impl LaunchFiles {
    /// Those to come in `dir`. Logs that are there are only added to by force.
    pub(super) fn check(
        dir: &Path,
        tpm_state: Option<&Path>,
        force: bool,
    ) -> Result<LaunchFiles, RestoreError> {
        let old_logs = logs(dir).map_err(RestoreError::file("list", dir))?;
        match old_logs.first() {
            Some(name) if !force => Err(RestoreError::Exists {
                path: dir.join(name),
            }),
            _ => Ok(LaunchFiles {
                dir: dir.into(),
                old_logs,
                tpm_state: tpm_state.map(RawPath::from),
            }),
        }
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes what was written; the programs must have ended.
    pub(super) fn remove(&self) {
        for socket in [QMP_SOCKET, TPM_SOCKET, STREAM_SOCKET, DISKS_SOCKET] {
            let _ = fs::remove_file(self.dir.join(socket));
        }
        if let Some(dir) = &self.tpm_state {
            tpm::remove_state(dir);
        }
        for log in logs(&self.dir).unwrap_or_default() {
            if !self.old_logs.contains(&log) {
                let _ = fs::remove_file(self.dir.join(log));
            }
        }
    }
}

/// Names of the logs in a folder.
fn logs(dir: &Path) -> io::Result<Vec<String>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let further = name
            .strip_prefix(CONSOLE_LOG)
            .is_some_and(|rest| rest.starts_with('.'));
        if further || [CONSOLE_LOG, QEMU_LOG, TPM_LOG].contains(&name.as_str()) {
            logs.push(name);
        }
    }
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_are_neither_overwritten_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("files");
        let check = |force| LaunchFiles::check(dir.path(), Some(&state), force);
        check(false).unwrap();
        let old = dir.path().join("console.log.2");
        fs::write(&old, "").unwrap();
        assert!(matches!(check(false), Err(RestoreError::Exists { .. })));
        let files = check(true).unwrap();
        for name in [QMP_SOCKET, TPM_SOCKET, CONSOLE_LOG, QEMU_LOG, TPM_LOG] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(&state).unwrap();
        fs::write(state.join("tpm2-00.permall"), "").unwrap();
        files.remove();
        fs::remove_dir(&state).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert!(old.exists());
    }
}
