//! A whole Debian as a guest: systemd, PostgreSQL under pgbench, and a ledger.
//!
//! The ledger commits numbered rows to PostgreSQL (`ack n=…`) and to SQLite
//! (`sqlite ack n=…`) and prints a number only when its commit was acknowledged,
//! so [`last_ack`] is what a disk taken later must hold and [`judge`] what it does
//! hold, and in which state. The heartbeat is that of the tiny guests.
//!
//! `tools/debian-guest` builds the disk, which takes minutes, when it is first asked
//! for. A guest writes to an overlay in its own folder, never to the cache.

mod judge;
mod programs;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::{GuestBuilder, Mode};
use crate::console::{Log, acknowledged};
use crate::disk::{DiskFormat, DiskSpec};
use crate::process::try_run;

pub use judge::{Judgement, judge};

const BUILDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/debian-guest");
/// What PostgreSQL is tuned for.
pub(crate) const MEMORY_MIB: u64 = 512;

/// A word for the kernel's command line: the guest does not obey its power button.
pub const IGNORE_BUTTON: &str = "vmtwin.ignore_button";
/// A word for the kernel's command line: the guest panics at the end of its shutdown,
/// when PostgreSQL has ended and the file system is still mounted. It then boots
/// again, unless `panic=0` is given too.
pub const PANIC_AT_SHUTDOWN: &str = "vmtwin.panic_at_shutdown";
/// A word for the kernel's command line: a program takes most of the processor until
/// the guest's very end.
pub const BUSY: &str = "vmtwin.busy";

/// Describes a Debian guest with a disk of its own; `disks` makes it boot another,
/// such as one that was restored. Panics if the image cannot be built.
pub fn guest() -> GuestBuilder {
    let image = DebianImage::build().unwrap_or_else(|error| panic!("{error:#}"));
    GuestBuilder::default()
        .name("debian")
        .mode(Mode::Debian)
        .memory_mib(MEMORY_MIB)
        .disks([DiskSpec::over(image.disk(), DiskFormat::Raw)])
}

/// The disk that such guests boot from, a raw image: not to be written to. Panics if it cannot be built.
pub fn disk() -> PathBuf {
    let image = DebianImage::build().unwrap_or_else(|error| panic!("{error:#}"));
    image.disk()
}

/// The last numbers whose commits a guest acknowledged; 0 if none was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acks {
    /// By PostgreSQL.
    pub postgres: u64,
    /// By SQLite.
    pub sqlite: u64,
}

/// Reads them from the log of a guest's first serial port.
pub fn last_ack(log: &Log) -> Acks {
    let text = log.text();
    let last = |label| acknowledged(&text, label).last().unwrap_or(0);
    Acks {
        postgres: last("ack "),
        sqlite: last("sqlite ack "),
    }
}

/// The folder that `tools/debian-guest` makes.
struct DebianImage(PathBuf);

impl DebianImage {
    /// Builds it if the cache does not have it; progress goes to stderr.
    fn build() -> Result<DebianImage> {
        let output = try_run(Command::new(BUILDER).stderr(Stdio::inherit()))
            .context("building the Debian guest")?;
        let folder = String::from_utf8(output.stdout).context("the Debian guest's folder")?;
        Ok(DebianImage(PathBuf::from(folder.trim())))
    }

    fn disk(&self) -> PathBuf {
        self.0.join("disk.raw")
    }

    /// PostgreSQL and SQLite of the same packages, to run on the host.
    fn programs(&self) -> PathBuf {
        self.0.join("judge")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_ledgers_are_told_apart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "ready mode=debian\r\nack n=8\r\nsqlite ack n=7\r\nack n=9\r\nsqlite ack n=8";
        std::fs::write(file.path(), text).unwrap();
        let acks = last_ack(&Log::new(file.path()));
        assert_eq!((acks.postgres, acks.sqlite), (9, 7));
        assert_eq!(Log::new(file.path()).acknowledged(), [8, 9]);
    }
}
