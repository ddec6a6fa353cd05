//! What a snapshot of a guest holds: its paths in the repository and the list kept in it.
//!
//! ```text
//!   /snapshot.json        this list: guest, point, consistency, disks, memory
//!   /machine.json         the machine: arguments, disks, firmware (`hypervisor::machine::Machine`)
//!   /disks/ID/00000000…   a disk: segments that `cat` joins into a raw image
//!   /memory/layout.json   shape of the migration stream (`migration::Layout`)
//!   /memory/head          stream up to and including the RAM setup section
//!   /memory/ram/N/…       RAM block number N, as an image
//!   /memory/tail          device state
//!   /memory/stream        instead of the four above: a stream that could not be parsed, as it is
//!   /twin/ID.json         what the twin wrote to a disk, offset and length, bytes: the guest never did
//!   /files/…              files beside the disks (TPM state)
//! ```
//! A restore needs nothing but these.

use serde::{Deserialize, Serialize};

/// Version of this layout.
pub const CONTENT_FORMAT: u32 = 1;
/// Path of the list.
pub const SNAPSHOT_JSON: &str = "/snapshot.json";
/// Path of the machine.
pub const MACHINE_JSON: &str = "/machine.json";
/// Path of the stream's shape.
pub const MEMORY_LAYOUT: &str = "/memory/layout.json";
/// Path of the stream's head.
pub const MEMORY_HEAD: &str = "/memory/head";
/// Path of the stream's tail.
pub const MEMORY_TAIL: &str = "/memory/tail";
/// Path of a stream stored as it is.
pub const MEMORY_STREAM: &str = "/memory/stream";
/// Largest list or machine accepted, bytes.
pub const MAX_JSON_BYTES: u64 = 16 << 20;
/// Largest head accepted, bytes.
pub const MAX_HEAD_BYTES: u64 = 4 << 20;
/// Largest tail accepted, bytes.
pub const MAX_TAIL_BYTES: u64 = 1 << 30;

/// Folder of a disk.
#[must_use]
pub fn disk_dir(id: &str) -> String {
    format!("/disks/{id}")
}

/// Path of the list of a twin's writes to a disk.
#[must_use]
pub fn twin_writes(id: &str) -> String {
    format!("/twin/{id}.json")
}

/// Folder of a RAM block.
#[must_use]
pub fn ram_dir(block: usize) -> String {
    format!("/memory/ram/{block}")
}

/// The list in a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Content {
    /// Layout version, [`CONTENT_FORMAT`].
    pub format: u32,
    /// The guest's name in the table of the host that backed it up.
    pub vm: String,
    /// Consistency kept: `state`, `crash`…
    pub consistency: String,
    /// The point, RFC 3339.
    pub time: String,
    /// QEMU's run state at the point: `running`, `paused`…
    pub run_state: String,
    /// Id of the snapshot whose state was settled, where that is how this one came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_from: Option<String>,
    /// Disks in the snapshot.
    pub disks: Vec<ContentDisk>,
    /// Memory, where it is held.
    pub memory: Option<ContentMemory>,
}

/// A disk in a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContentDisk {
    /// Its id; segments lie in [`disk_dir`].
    pub id: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Image format it had on the host: `qcow2`, `raw`…
    pub format: String,
    /// Whether [`twin_writes`] lists where it differs from the guest's disk at the point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub twin_writes: bool,
}

/// Memory in a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "stored", rename_all = "snake_case")]
pub enum ContentMemory {
    /// Taken apart: layout, head, one image per RAM block, tail.
    Parsed {
        /// Number of RAM blocks.
        blocks: usize,
        /// Length of the original stream, bytes.
        stream_bytes: u64,
    },
    /// As QEMU wrote it.
    Stream {
        /// Its length, bytes.
        stream_bytes: u64,
        /// Why it was not taken apart.
        reason: String,
    },
}
