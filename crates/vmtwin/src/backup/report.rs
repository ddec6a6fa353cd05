//! What a backup answers, per guest.

use serde::Serialize;
use vmtwin_hypervisor::capture::Point;
use vmtwin_repository::FileStats;

use super::also::AlsoReport;

/// The outcome for one guest.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct BackupReport {
    /// The guest.
    pub(crate) vm: String,
    /// Id of the snapshot; none where the backup failed.
    pub(crate) snapshot: Option<String>,
    /// Name of the repository that it is in: `main`, or a further one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<String>,
    /// Copies in further repositories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) also: Vec<AlsoReport>,
    /// Id of the snapshot whose state was settled, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) settled_from: Option<String>,
    /// Consistency kept.
    pub(crate) consistency: Option<String>,
    /// Consistency asked for.
    pub(crate) consistency_asked: String,
    /// STOP to RESUME by QEMU's events; none where the guest was not paused.
    pub(crate) pause_ms: Option<f64>,
    /// How long the guest's file systems were frozen, where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frozen_ms: Option<f64>,
    /// The point, RFC 3339.
    pub(crate) time: Option<String>,
    /// How the pause was made, and what came before it.
    pub(crate) point: Option<Point>,
    /// The twin, where there was one.
    pub(crate) twin: Option<TwinReport>,
    /// Name of the dirty bitmap that notes what the guest writes from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bitmap: Option<String>,
    /// How each disk was read.
    pub(crate) disks: Vec<DiskReport>,
    /// Length of disks and memory.
    pub(crate) bytes_total: u64,
    /// Bytes read.
    pub(crate) bytes_read: u64,
    /// Bytes the repository did not have.
    pub(crate) bytes_new: u64,
    /// What those take in the repository.
    pub(crate) bytes_stored: u64,
    /// Seconds per phase.
    pub(crate) seconds: Seconds,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

/// How a disk was read.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DiskReport {
    /// The disk.
    pub(crate) id: String,
    /// `changed`: what was written since an earlier snapshot; `all`.
    pub(crate) read: &'static str,
    /// Why all of it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

/// What became of the twin.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct TwinReport {
    /// It was a domain of libvirt.
    pub(crate) domain: bool,
    /// From its start until it had its state, seconds.
    pub(crate) load_s: f64,
    /// From its resume until it had powered off, seconds.
    pub(crate) run_s: f64,
    /// How often its power button was pressed.
    pub(crate) presses: u32,
    /// Whether its guest agent was asked too, and took it.
    pub(crate) agent: bool,
}

/// Seconds per phase.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Seconds {
    /// Inspection, repository, lock.
    pub(crate) prepare: f64,
    /// Scratch, filters, huge pages, the point itself.
    pub(crate) capture: f64,
    /// Until the memory stream had come.
    pub(crate) memory: f64,
    /// The twin, from its start to its end.
    pub(crate) twin: f64,
    /// Reading and storing disks.
    pub(crate) disks: f64,
    /// Storing memory.
    pub(crate) store_memory: f64,
    /// Index, tree, snapshot.
    pub(crate) finish: f64,
    /// From the instruction to the snapshot.
    pub(crate) total: f64,
}

impl BackupReport {
    /// Adds what storing a file or an image did.
    pub(crate) fn count(&mut self, stats: &FileStats) {
        self.bytes_total += stats.bytes_total;
        self.bytes_read += stats.bytes_read;
        self.bytes_new += stats.bytes_new;
        self.bytes_stored += stats.bytes_stored;
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        if let Some(error) = &self.error {
            return format!("{}: FAILED: {error}", self.vm);
        }
        let pause = match (self.pause_ms, &self.settled_from) {
            (Some(ms), _) => format!("paused {ms:.1} ms"),
            (None, Some(id)) => format!("settled from {}", &id[..id.len().min(8)]),
            (None, None) => "not paused (it was not running)".to_owned(),
        };
        let frozen = self.frozen_ms.map_or(String::new(), |ms| {
            format!(", file systems frozen for {ms:.0} ms")
        });
        let twin = self.twin.map_or(String::new(), |twin| {
            format!(", its twin shut down in {:.1} s", twin.run_s)
        });
        let also = self.also.iter().map(|also| match &also.error {
            None => format!(
                "\n  also in {}: {}, stored {} in {:.1} s",
                also.repository,
                also.snapshot
                    .as_deref()
                    .and_then(|id| id.get(..8))
                    .unwrap_or(""),
                crate::ui::bytes(also.bytes_stored),
                also.seconds
            ),
            Some(_) => format!("\n  NOT in {}", also.repository),
        });
        let also: String = also.collect();
        format!(
            "{}: snapshot {} ({}), {pause}{frozen}{twin}; read {}, new {}, stored {} in {:.1} s{also}",
            self.vm,
            self.snapshot
                .as_deref()
                .map_or("", |s| &s[..s.len().min(8)]),
            self.consistency.as_deref().unwrap_or("?"),
            crate::ui::bytes(self.bytes_read),
            crate::ui::bytes(self.bytes_new),
            crate::ui::bytes(self.bytes_stored),
            self.seconds.total,
        )
    }
}
