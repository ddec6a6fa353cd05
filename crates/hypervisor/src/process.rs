//! What `/proc` says of QEMU's process: arguments, user, folder, start time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process, told apart from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has `pid` now, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may hold blanks and parentheses: count fields after the last ')'.
        let after = &stat[stat.rfind(')')? + 1..];
        let start_ticks = after.split_whitespace().nth(19)?.parse().ok()?;
        Some(ProcessId { pid, start_ticks })
    }

    /// Kills this very process, if it lives, and waits until it is gone.
    ///
    /// # Errors
    /// It may not be killed, or is still there after `limit`.
    pub fn kill(self, limit: Duration) -> std::io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| self.is_alive()) else {
            return Ok(());
        };
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() > limit {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether this very process still lives (a zombie does not).
    #[must_use]
    pub fn is_alive(self) -> bool {
        ProcessId::of(self.pid) == Some(self) && !is_zombie(self.pid)
    }
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|s| {
            s.rfind(')')
                .map(|at| s[at + 1..].trim_start().starts_with(['Z', 'X']))
        })
        .unwrap_or(true)
}

/// The command line of a process, program first.
///
/// # Errors
/// The process is gone, or another user's.
pub fn arguments(pid: u32) -> std::io::Result<Vec<String>> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let text = String::from_utf8_lossy(&raw);
    let text = text.strip_suffix('\0').unwrap_or(&text);
    Ok(text.split('\0').map(str::to_owned).collect())
}

/// Takes our own settings, a password perhaps among them, out of a child's environment, which
/// others may read for as long as it lives.
pub fn without_our_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"VMTWIN_") {
            command.env_remove(name);
        }
    }
    command
}

/// Processes that have `path` in an argument.
///
/// Those that end meanwhile, and those of other users where they may not be looked at, are left out.
#[must_use]
pub fn with_argument(path: &Path) -> Vec<ProcessId> {
    let path = path.to_string_lossy();
    let ours = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != ours)
        .filter(|pid| arguments(*pid).is_ok_and(|args| args.iter().any(|arg| arg.contains(&*path))))
        .filter_map(ProcessId::of)
        .collect()
}

/// The working folder of a process.
///
/// # Errors
/// The process is gone, or another user's.
pub fn working_dir(pid: u32) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd"))
}

/// The effective user and group of a process.
#[must_use]
pub fn user_and_group(pid: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(2)?.parse().ok()
    };
    Some((field("Uid:")?, field("Gid:")?))
}
