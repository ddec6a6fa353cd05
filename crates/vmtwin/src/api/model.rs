//! The shapes of answers.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use vmtwin_catalog::{ApiToken, AuditEntry, Deletion, Growth, Snapshot, Task};

use crate::task::Live;

/// An error, as RFC 9457 has it.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
#[allow(
    dead_code,
    reason = "the shape of vmtwin_server::Problem, for the document"
)]
pub(super) struct ProblemView {
    status: u16,
    title: String,
    detail: String,
}

/// A list, or a part of one.
#[derive(Serialize, ToSchema)]
pub(super) struct ListOf<T> {
    pub(super) items: Vec<T>,
    /// Where the next part begins; null at the end.
    pub(super) next: Option<String>,
}

/// Somebody who is logged in.
#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    pub(super) name: String,
    /// view, backup, restore or admin.
    pub(super) scope: String,
    /// What the header X-CSRF-Token must hold where a cookie is used.
    pub(super) csrf: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) expires_at: OffsetDateTime,
}

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenView {
    name: String,
    scope: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    used_at: Option<OffsetDateTime>,
}

impl From<ApiToken> for TokenView {
    fn from(token: ApiToken) -> Self {
        Self {
            name: token.name,
            scope: token.scope.to_string(),
            created_at: token.created_at,
            expires_at: token.expires_at,
            used_at: token.used_at,
        }
    }
}

/// A token that was made just now.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeToken {
    pub(super) name: String,
    pub(super) scope: String,
    /// The secret: shown this once.
    pub(super) token: String,
}

/// How far a job is.
#[derive(Serialize, ToSchema)]
#[schema(as = Progress)]
pub(super) struct ProgressView {
    label: String,
    /// Bytes, or steps.
    done: u64,
    total: Option<u64>,
}

/// A command that runs, or ran.
#[derive(Serialize, ToSchema)]
pub(super) struct Job {
    /// Null for what only looks, which is kept nowhere.
    pub(super) id: Option<String>,
    /// The words of the command.
    pub(super) command: String,
    /// What follows them.
    pub(super) arguments: Vec<String>,
    /// Who wanted it: the name of a token, or a schedule.
    pub(super) by: String,
    /// The guest it is about, if it is one.
    pub(super) vm: Option<String>,
    /// queued, running, done, warnings, failed, cancelled or interrupted.
    pub(super) state: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) ended_at: Option<OffsetDateTime>,
    pub(super) progress: Option<ProgressView>,
    pub(super) exit_code: Option<i64>,
    pub(super) error: Option<String>,
    /// The document that the command printed; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    /// The same for people; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    /// What it said; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<Vec<String>>,
}

impl From<Task> for Job {
    fn from(task: Task) -> Self {
        let words = task.command.split(' ').count();
        Self {
            id: Some(task.id.to_string()),
            command: task.command,
            arguments: task.arguments.into_iter().skip(words).collect(),
            by: task.asked_by,
            vm: task.vm_name,
            state: task.state.to_string(),
            created_at: task.created_at,
            started_at: task.started_at,
            ended_at: task.ended_at,
            progress: None,
            exit_code: task.exit_code,
            error: task.error,
            result: None,
            text: None,
            log: None,
        }
    }
}

impl From<&Live> for Job {
    fn from(live: &Live) -> Self {
        Self {
            progress: live.progress.clone().map(|progress| ProgressView {
                label: progress.label,
                done: progress.done,
                total: progress.total,
            }),
            ..Self::from(live.task.clone())
        }
    }
}

/// A snapshot.
#[derive(Serialize, ToSchema)]
#[schema(as = Snapshot)]
pub(super) struct SnapshotView {
    pub(super) id: String,
    pub(super) vm: String,
    pub(super) repository: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) time: OffsetDateTime,
    /// application, state, filesystem or crash.
    pub(super) consistency: String,
    pub(super) consistency_asked: String,
    pub(super) bytes_read: u64,
    pub(super) bytes_new: u64,
    pub(super) bytes_stored: u64,
    pub(super) parent: Option<String>,
    pub(super) state: String,
    pub(super) pause_ms: Option<f64>,
    /// booted or whole, if it was verified; failed, if that went wrong.
    pub(super) verified: Option<String>,
    pub(super) has_memory: bool,
    /// What the backup reported; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<Value>,
}

/// A snapshot that is to be removed.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletionView {
    pub(super) snapshot: String,
    pub(super) repository: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) asked_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) removed_after: OffsetDateTime,
}

impl From<Deletion> for DeletionView {
    fn from(one: Deletion) -> Self {
        Self {
            snapshot: one.snapshot_id,
            repository: one.repository_id,
            asked_at: one.asked_at,
            removed_after: one.due_at,
        }
    }
}

impl From<&Snapshot> for SnapshotView {
    fn from(snapshot: &Snapshot) -> Self {
        let report = &snapshot.report;
        let verified = report["verified"].as_object().map(|found| {
            let is = |key: &str| found.get(key).and_then(Value::as_bool) == Some(true);
            match (is("ok"), is("booted")) {
                (false, _) => "failed",
                (true, true) => "booted",
                (true, false) => "whole",
            }
        });
        Self {
            id: snapshot.id.clone(),
            vm: snapshot.vm_name.clone(),
            repository: snapshot.repository_id.clone(),
            time: snapshot.time,
            consistency: snapshot.consistency.to_string(),
            consistency_asked: snapshot.consistency_asked.to_string(),
            bytes_read: snapshot.bytes_read,
            bytes_new: snapshot.bytes_new,
            bytes_stored: snapshot.bytes_stored,
            parent: snapshot.parent.clone(),
            state: snapshot.state.to_string(),
            pause_ms: report["pause_ms"].as_f64(),
            verified: verified.map(str::to_owned),
            has_memory: snapshot.consistency == vmtwin_catalog::Consistency::State,
            report: None,
        }
    }
}

/// How a guest is reached.
#[derive(Serialize, ToSchema)]
#[schema(as = Connection)]
pub(super) struct ConnectionView {
    pub(super) kind: String,
    pub(super) address: String,
}

/// The size of a snapshot.
#[derive(Serialize, ToSchema)]
pub(super) struct Size {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) time: OffsetDateTime,
    pub(super) bytes_new: u64,
    pub(super) bytes_stored: u64,
}

/// The last backup of a guest, however it ended.
#[derive(Serialize, ToSchema)]
pub(super) struct LastJob {
    pub(super) state: String,
    pub(super) error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) ended_at: Option<OffsetDateTime>,
}

/// A schedule of a guest.
#[derive(Serialize, ToSchema)]
pub(super) struct GuestSchedule {
    pub(super) name: String,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) next: Option<OffsetDateTime>,
}

/// A disk of a guest.
#[derive(Serialize, ToSchema)]
#[schema(as = Disk)]
pub(super) struct DiskView {
    pub(super) disk_id: String,
    pub(super) address: String,
    pub(super) kind: String,
    pub(super) size_bytes: u64,
    pub(super) format: String,
    /// Whether backups hold it.
    pub(super) included: bool,
}

/// A guest, and whether it is protected.
#[derive(Serialize, ToSchema)]
pub(super) struct Guest {
    pub(super) id: String,
    pub(super) name: String,
    /// The node that it is on, in a cluster.
    pub(super) node: Option<String>,
    /// running, stopped, paused or unknown.
    pub(super) state: String,
    pub(super) connection: ConnectionView,
    pub(super) memory_bytes: Option<u64>,
    pub(super) disk_bytes: u64,
    /// protected, late, failing, never or unscheduled.
    pub(super) protection: String,
    /// Why, in words.
    pub(super) reason: String,
    pub(super) last_good: Option<SnapshotView>,
    pub(super) last_job: Option<LastJob>,
    pub(super) schedules: Vec<GuestSchedule>,
    /// Of the last snapshots, the oldest first.
    pub(super) trend: Vec<Size>,
    /// Not in the overview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disks: Option<Vec<DiskView>>,
}

/// Is everything protected?
#[derive(Serialize, ToSchema)]
pub(super) struct Overview {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) now: OffsetDateTime,
    pub(super) host: String,
    pub(super) version: String,
    pub(super) guests: Vec<Guest>,
    /// How many guests there are of each kind of protection, and of all as `guests`.
    pub(super) counts: BTreeMap<String, usize>,
    pub(super) running_jobs: usize,
}

/// A run of a schedule.
#[derive(Serialize, ToSchema)]
#[schema(as = Run)]
pub(super) struct RunView {
    #[serde(with = "time::serde::rfc3339")]
    pub(super) due_at: OffsetDateTime,
    /// A guest's name, or the work after all of them.
    pub(super) subject: String,
    /// done, warnings, failed, missed or interrupted; null while it goes on.
    pub(super) outcome: Option<String>,
    pub(super) note: Option<String>,
}

/// A schedule.
#[derive(Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(super) struct ScheduleView {
    pub(super) name: String,
    pub(super) enabled: bool,
    /// When, in words.
    pub(super) when: String,
    /// What of, in words.
    pub(super) what: String,
    /// The host that follows it, or `every node`.
    pub(super) host: String,
    pub(super) spec: Value,
    /// The next due times, RFC 3339.
    pub(super) next: Vec<String>,
    pub(super) last: Vec<RunView>,
}

/// A node of the cluster.
#[derive(Serialize, ToSchema)]
#[schema(as = Node)]
pub(super) struct NodeView {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) version: String,
    pub(super) address: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) seen_at: OffsetDateTime,
    /// up, silent (it has an agent that was not heard of for some minutes) or alone (it has none).
    pub(super) state: String,
}

/// A backup of the cluster's configuration.
#[derive(Serialize, ToSchema)]
pub(super) struct ClusterBackup {
    pub(super) file: String,
    pub(super) bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) time: OffsetDateTime,
    pub(super) nodes: usize,
    pub(super) collected: usize,
}

/// The cluster of this host.
#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(super) struct ClusterView {
    pub(super) cluster: Option<String>,
    pub(super) nodes: Vec<NodeView>,
    pub(super) backups: Vec<ClusterBackup>,
}

/// What one day's snapshots brought.
#[derive(Serialize, ToSchema)]
pub(super) struct Day {
    /// UTC, `2026-11-23`.
    day: String,
    bytes_read: u64,
    bytes_new: u64,
    bytes_stored: u64,
    snapshots: u64,
    /// Stored up to then by the snapshots that there are.
    total_stored: u64,
}

/// Days with a running total.
pub(super) fn days(growth: Vec<Growth>) -> Vec<Day> {
    let mut total = 0;
    let day = |growth: Growth| {
        total += growth.bytes_stored;
        Day {
            day: growth.day,
            bytes_read: growth.bytes_read,
            bytes_new: growth.bytes_new,
            bytes_stored: growth.bytes_stored,
            snapshots: growth.snapshots,
            total_stored: total,
        }
    };
    growth.into_iter().map(day).collect()
}

/// Something that was asked for.
#[derive(Serialize, ToSchema)]
pub(super) struct Audited {
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    who: String,
    origin: String,
    action: String,
    detail: String,
    outcome: String,
}

impl From<AuditEntry> for Audited {
    fn from(entry: AuditEntry) -> Self {
        Self {
            time: entry.at,
            who: entry.who,
            origin: entry.origin,
            action: entry.action,
            detail: entry.detail,
            outcome: entry.outcome,
        }
    }
}
