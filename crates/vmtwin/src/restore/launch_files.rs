//! Files that QEMU makes in the folder of a restore: its socket and logs.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RestoreError;
use super::take_back::RawPath;

/// QEMU's monitor.
pub(super) const QMP_SOCKET: &str = "qmp.sock";
/// What the first serial console prints; further consoles have numbers.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// What QEMU prints.
pub(super) const QEMU_LOG: &str = "qemu.log";

/// The files of one launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaunchFiles {
    dir: RawPath,
    /// Names of logs that were there before.
    old_logs: Vec<String>,
}

impl LaunchFiles {
    /// Those to come in `dir`. Logs that are there are only added to by force.
    pub(super) fn check(dir: &Path, force: bool) -> Result<LaunchFiles, RestoreError> {
        let old_logs = logs(dir).map_err(RestoreError::file("list", dir))?;
        match old_logs.first() {
            Some(name) if !force => Err(RestoreError::Exists {
                path: dir.join(name),
            }),
            _ => Ok(LaunchFiles {
                dir: dir.into(),
                old_logs,
            }),
        }
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes what was written; QEMU must have ended.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(self.dir.join(QMP_SOCKET));
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
        if further || [CONSOLE_LOG, QEMU_LOG].contains(&name.as_str()) {
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
        LaunchFiles::check(dir.path(), false).unwrap();
        let old = dir.path().join("console.log.2");
        fs::write(&old, "").unwrap();
        assert!(matches!(
            LaunchFiles::check(dir.path(), false),
            Err(RestoreError::Exists { .. })
        ));
        let files = LaunchFiles::check(dir.path(), true).unwrap();
        for name in [QMP_SOCKET, CONSOLE_LOG, QEMU_LOG] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        files.remove();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert!(old.exists());
    }
}
