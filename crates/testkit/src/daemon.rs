//! Guests that outlive the process that started them, for scripts.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::{GuestBuilder, Places};
use crate::process::Workdir;

/// Where a guest's sockets and logs are to be.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    /// The QMP socket.
    pub qmp: PathBuf,
    /// What the first serial port prints is appended here.
    pub serial_log: PathBuf,
}

impl DaemonSpec {
    /// The rest (UEFI variables) goes beside the socket.
    fn places(&self) -> Places {
        Places {
            folder: self.qmp.parent().map_or_else(PathBuf::new, PathBuf::from),
            qmp: self.qmp.clone(),
            serial_log: self.serial_log.clone(),
        }
    }
}

impl GuestBuilder {
    /// Starts the guest in the background and returns its process id once its QMP
    /// socket is there. Nothing ends it but its own shutdown or a signal.
    pub fn start_daemon(&self, spec: &DaemonSpec) -> Result<u32> {
        let work = Workdir::new();
        let pid_file = work.join("pid");
        let log = work.join("qemu.log");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(self.arguments(&spec.places(), true)?)
            .arg("-daemonize");
        command.arg("-pidfile").arg(&pid_file);
        // A file, not a pipe: the daemon must not hold a pipe of the caller's.
        let output = std::fs::File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let status = command.status().context("starting qemu-system-x86_64")?;
        let said = std::fs::read_to_string(&log)?;
        anyhow::ensure!(status.success(), "QEMU ended with {status}: {said}");
        let pid = std::fs::read_to_string(&pid_file).context("reading QEMU's pid file")?;
        pid.trim()
            .parse()
            .context("QEMU's pid file holds no number")
    }

    /// Replaces this process by the guest; returns only if that fails.
    pub fn become_qemu(&self, spec: &DaemonSpec) -> anyhow::Error {
        let arguments = match self.arguments(&spec.places(), true) {
            Ok(arguments) => arguments,
            Err(error) => return error,
        };
        let error = Command::new("qemu-system-x86_64").args(arguments).exec();
        anyhow::Error::new(error).context("starting qemu-system-x86_64")
    }
}
