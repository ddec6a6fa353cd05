//! What `/proc` says of QEMU's process: arguments, user, folder, start time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
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
        Some(Stat::read(pid)?.process)
    }

    /// Kills this very process, if it lives, and waits until it is gone.
    ///
    /// # Errors
    /// It may not be killed, or is still there after `limit`.
    pub fn kill(self, limit: Duration) -> std::io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(());
        };
        // Looked at now that the pid cannot pass to another process unseen.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        let timeout = Timespec::try_from(limit).map_err(std::io::Error::other)?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ended, Some(&timeout))? {
            0 => Err(std::io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Whether this very process still lives. A zombie does not, once its last thread has ended: of
    /// a killed process the first one may be a zombie while others still end a write and hold files.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.process == self && !stat.ended)
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    process: ProcessId,
    ended: bool,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Stat::parse(pid, &text)
    }

    fn parse(pid: u32, text: &str) -> Option<Stat> {
        // The command name may hold blanks and parentheses: count fields after the last ')'.
        let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
        let is_zombie = matches!(fields.next()?, "Z" | "X"); // field 3
        let threads: u32 = fields.nth(16)?.parse().ok()?; // field 20
        let start_ticks = fields.nth(1)?.parse().ok()?; // field 22
        Some(Stat {
            process: ProcessId { pid, start_ticks },
            ended: is_zombie && threads <= 1,
        })
    }
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

/// Keys of S3, as other programs know them too.
const KEYS: [&str; 3] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// As [`without_our_settings`], and takes the keys of S3 out too: for children that are not the
/// user's own commands.
pub fn without_secrets(command: &mut Command) -> &mut Command {
    for name in KEYS {
        command.env_remove(name);
    }
    without_our_settings(command)
}

/// Processes that have `path` in an argument; see [`with_argument_that`].
#[must_use]
pub fn with_argument(path: &Path) -> Vec<ProcessId> {
    let path = path.to_string_lossy();
    with_argument_that(|argument| argument.contains(&*path))
}

/// Processes with an argument that `is_it` accepts, this one left out.
///
/// Those that end meanwhile, and those of other users where they may not be looked at, are left out.
#[must_use]
pub fn with_argument_that(is_it: impl Fn(&str) -> bool) -> Vec<ProcessId> {
    let ours = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != ours)
        // Who it is comes first: what is read after is then of this process or of none.
        .filter_map(ProcessId::of)
        .filter(|process| {
            arguments(process.pid).is_ok_and(|all| all.iter().any(|argument| is_it(argument)))
        })
        .collect()
}

/// A field such as `VmRSS:   1234 kB` of a file in `/proc`, in bytes.
pub(crate) fn kib_field_bytes(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Runs a program of `package` to a good end. An error is what it said, for people.
pub(crate) fn run(command: &mut Command, package: &str) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        format!("cannot run {program} (package {package}): {error}")
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_first_thread_has_ended_lives_until_the_last_has() {
        let program = "import ctypes, threading, time\n\
            threading.Thread(target=time.sleep, args=(600,)).start()\n\
            ctypes.CDLL(None).syscall(60, 0)";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .spawn()
            .unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        let status = format!("/proc/{}/status", process.pid);
        while !std::fs::read_to_string(&status)
            .unwrap()
            .contains("State:\tZ")
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(process.is_alive());
        process.kill(Duration::from_secs(30)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
