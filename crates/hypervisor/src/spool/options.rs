//! Limits of a spool.

use std::path::PathBuf;
use std::time::Duration;

/// Memory that a spool holds before it uses the disk: little, so that a backup takes the same for
/// guests of all sizes.
const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
/// What memory may exceed its limit by while the disk is behind: better much than a failed backup.
const DEFAULT_MEMORY_MARGIN_BYTES: u64 = 512 * 1024 * 1024;
/// Twice what the memory of a large guest takes.
const DEFAULT_DISK_LIMIT_BYTES: u64 = 1024 * 1024 * 1024 * 1024;
const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);
const DEFAULT_STALL: Duration = Duration::from_secs(10);

/// What a spool may use, and how long it may take.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// Memory that is used before the disk, in bytes. Default 64 MiB.
    pub memory_limit_bytes: u64,
    /// How far memory may exceed the limit while the disk is behind, in bytes. Default 512 MiB,
    /// at least two chunks of 1 MiB.
    pub memory_margin_bytes: u64,
    /// Disk that may be used, in bytes. Default 1 TiB; 0: never use the disk.
    pub disk_limit_bytes: u64,
    /// Folder of the unlinked file.
    pub dir: PathBuf,
    /// The whole stream must have come in this time. Default 10 minutes.
    pub deadline: Duration,
    /// The longest time without a byte. Default 10 s.
    pub stall: Duration,
}

impl SpoolOptions {
    /// The defaults, with the unlinked file in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> SpoolOptions {
        SpoolOptions {
            memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES,
            memory_margin_bytes: DEFAULT_MEMORY_MARGIN_BYTES,
            disk_limit_bytes: DEFAULT_DISK_LIMIT_BYTES,
            dir: dir.into(),
            deadline: DEFAULT_DEADLINE,
            stall: DEFAULT_STALL,
        }
    }

    /// The most memory that a spool ever holds.
    pub fn hard_memory_limit_bytes(&self) -> u64 {
        let least = 2 * super::CHUNK_BYTES as u64;
        self.memory_limit_bytes
            .saturating_add(self.memory_margin_bytes.max(least))
    }
}
