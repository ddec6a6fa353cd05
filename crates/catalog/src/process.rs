//! Which process owns a job, and whether it still runs.
//!
//! A pid alone is not an identity, since the kernel gives it again. With the start time of the
//! process (in ticks since boot) and the id of the boot it is: a pid that was given again has
//! another start time, and after a reboot every earlier owner is gone.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A process, told apart from every other process that ever had its pid.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// The boot of the kernel it runs on.
    pub boot_id: String,
    /// The name of the host it runs on.
    pub host: String,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended, or ended without having been waited for.
    Dead,
    /// It belongs to another host, or this one does not say.
    Unknown,
}

impl ProcessIdentity {
    /// This process.
    pub fn of_self() -> Result<Self> {
        let pid = std::process::id();
        Self::of_pid(pid)?.ok_or_else(|| Error::Process {
            path: stat_path(pid),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// The process of this host that has this pid now, if any does.
    pub fn of_pid(pid: u32) -> Result<Option<Self>> {
        let Some(stat) = Stat::read(pid)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            start_ticks: stat.start_ticks,
            boot_id: boot_id()?,
            host: host()?,
        }))
    }

    /// Whether the process runs, is gone, or cannot be judged from here.
    pub fn liveness(&self) -> Liveness {
        let (Ok(boot_id), Ok(host)) = (boot_id(), host()) else {
            return Liveness::Unknown;
        };
        // Another host's processes are not seen from here. It may have our boot id all the same: a
        // container has its machine's, with process ids of its own.
        if self.host != host {
            return Liveness::Unknown;
        }
        if self.boot_id != boot_id {
            return Liveness::Dead;
        }
        match Stat::read(self.pid) {
            Ok(Some(stat)) if stat.start_ticks == self.start_ticks && !stat.ended => {
                Liveness::Alive
            }
            Ok(_) => Liveness::Dead,
            Err(_) => Liveness::Unknown,
        }
    }

    /// True if the process is known to run.
    pub fn is_alive(&self) -> bool {
        self.liveness() == Liveness::Alive
    }

    /// True if the process is known to be gone. Not the opposite of [`Self::is_alive`]: a process
    /// of another host is neither.
    pub fn is_dead(&self) -> bool {
        self.liveness() == Liveness::Dead
    }
}

struct Stat {
    start_ticks: u64,
    /// A zombie whose last thread has ended does nothing any more, it only waits for its parent.
    ended: bool,
}

impl Stat {
    fn read(pid: u32) -> Result<Option<Self>> {
        let path = stat_path(pid);
        let gone = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some).ok_or_else(|| Error::Process {
                path,
                source: io::ErrorKind::InvalidData.into(),
            }),
            Err(error) if gone(&error) => Ok(None),
            Err(source) => Err(Error::Process { path, source }),
        }
    }

    /// The name in field 2 may hold spaces and parentheses: count from the last parenthesis.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let is_zombie = matches!(fields.next()?, "Z" | "X"); // field 3
        let threads: u32 = fields.nth(16)?.parse().ok()?; // field 20
        let start_ticks = fields.nth(1)?.parse().ok()?; // field 22
        Some(Self {
            start_ticks,
            ended: is_zombie && threads <= 1,
        })
    }
}

fn stat_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/stat"))
}

fn boot_id() -> Result<String> {
    read_line(Path::new("/proc/sys/kernel/random/boot_id"))
}

fn host() -> Result<String> {
    read_line(Path::new("/proc/sys/kernel/hostname"))
}

fn read_line(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::Process {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_is_alive() {
        assert!(ProcessIdentity::of_self().unwrap().is_alive());
    }

    #[test]
    fn a_killed_child_is_dead_before_and_after_it_is_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = ProcessIdentity::of_pid(child.id()).unwrap().unwrap();
        assert!(identity.is_alive());
        child.kill().unwrap();
        while identity.is_alive() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(identity.liveness(), Liveness::Dead);
        child.wait().unwrap();
        assert_eq!(identity.liveness(), Liveness::Dead);
    }

    #[test]
    fn a_reused_pid_and_an_earlier_boot_are_dead_and_another_host_is_unknown() {
        let own = ProcessIdentity::of_self().unwrap();
        let reused = ProcessIdentity {
            start_ticks: own.start_ticks - 1,
            ..own.clone()
        };
        let rebooted = ProcessIdentity {
            boot_id: "earlier".into(),
            ..own.clone()
        };
        let elsewhere = ProcessIdentity {
            host: "elsewhere".into(),
            ..rebooted.clone()
        };
        let beside = ProcessIdentity {
            host: "container".into(),
            ..reused.clone()
        };
        assert_eq!(reused.liveness(), Liveness::Dead);
        assert_eq!(rebooted.liveness(), Liveness::Dead);
        assert_eq!(elsewhere.liveness(), Liveness::Unknown);
        assert_eq!(beside.liveness(), Liveness::Unknown);
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 1 1 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 1 0 777 1000 100";
        let stat = Stat::parse(&format!("42 (a ) (b) {tail}")).unwrap();
        assert_eq!((stat.start_ticks, stat.ended), (777, false));
        assert!(Stat::parse("42 (a").is_none());
    }
}
