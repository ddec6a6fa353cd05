//! What a caller asks of a capture, and what is known of the point afterwards.

use std::path::PathBuf;
use std::time::Duration;

use crate::collapse::CollapseReport;
use crate::guard::GuardCommand;
use crate::spool::SpoolOptions;

/// What to capture and with what means.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Memory and device state too, or disks alone.
    pub memory: bool,
    /// Eight characters that tell this capture's nodes apart.
    pub tag: String,
    /// Folder of this capture alone: sockets and scratch images. It exists, and is private.
    pub dir: PathBuf,
    /// Bitmaps to be read at the point: id of the disk, name of the bitmap on its node.
    pub bitmaps: Vec<(String, String)>,
    /// Keep old data in a storage daemon of its own, not in the guest's QEMU, so that the point
    /// outlives the guest: for a standby twin.
    pub outside: bool,
    /// How to start the pause guard.
    pub guard: GuardCommand,
    /// When the guard ends a pause, from its beginning.
    pub pause_deadline: Duration,
    /// What the pause may last longer where it includes the snapshot's preparation.
    pub preparation_limit: Duration,
    /// The memory spool's limits.
    pub spool: SpoolOptions,
    /// Longest time for putting memory on huge pages; zero leaves it out.
    pub collapse_limit: Duration,
}

/// How the pause was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseMethod {
    /// The guest was not running: neither paused nor resumed.
    #[default]
    NotRunning,
    /// Disks alone: pause, switch, resume.
    DisksOnly,
    /// Switched at the boundary of QEMU's snapshot thread.
    Boundary,
    /// Paused before the snapshot's preparation (longer).
    StopFirst,
}

/// What is known of the point.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Point {
    /// STOP to RESUME by QEMU's events, milliseconds; none where the guest was not paused.
    pub pause_ms: Option<f64>,
    /// QEMU's time of STOP, microseconds since the epoch; else our time of the switch.
    pub time_us: u64,
    /// How it was made.
    pub method: PauseMethod,
    /// Boundaries missed before it succeeded.
    pub missed: u32,
    /// Work on huge pages before the pause.
    pub collapse: CollapseReport,
    /// What the user should know.
    pub warnings: Vec<String>,
}
