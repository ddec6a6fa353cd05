//! Catalog: the VM management table, jobs and their journals, snapshots and settings, in a file of
//! SQLite or in a PostgreSQL database.
//!
//! It knows nothing of hypervisors or repositories: what they report comes and goes as JSON.
//!
//! | table | file | holds |
//! |---|---|---|
//! | `vm`, `disk` | `vm.rs`, `disk.rs` | guests and twins, their disks, who must be resumed |
//! | `job`, `step` | `job.rs`, `step.rs` | work, its owner, and how to undo what it began |
//! | `snapshot` | `snapshot.rs` | a cache of what the repositories hold |
//! | `deletion` | `deletion.rs` | snapshots that are to be removed, and when |
//! | `schedule`, `schedule_run` | `schedule.rs` | schedules, and what became of each of their due times |
//! | `task` | `task.rs` | commands that a daemon runs for somebody |
//! | `api_token`, `api_session`, `audit` | `access.rs` | who may ask a daemon for what, and who did |
//! | `notify_target`, `notify_failing` | `notify.rs` | whom to tell of what goes wrong, and what does |
//! | `notify_message` | `outbox.rs` | messages on their way, claimed by whoever delivers them |
//! | `node` | `node.rs` | the nodes of a cluster, and the last configuration each gave |
//! | `join_token`, `node_certificate` | `membership.rs` | who may speak as a node |
//! | `setting` | `setting.rs` | texts by key |
//! | (all) | `figures.rs` | figures for whoever watches, cheap however long the history is |
//! | (all) | `dump/` | complete copies, the same from both databases |
//!
//! Invariants:
//! - What a call wrote is on disk when the call returns, all of it or nothing.
//! - The undo of a step is on disk before the step is done.
//! - At most one live job holds a guest.
//! - A job ends only when none of its undos is open; one whose process died stays `running` and
//!   is found by [`Catalog::dead_jobs`].
//! - A value that no version of the program writes is an error, never a default.

mod access;
mod deletion;
mod disk;
mod dump;
mod error;
mod figures;
mod history;
mod id;
mod job;
mod lease;
mod membership;
mod node;
mod notify;
mod open;
mod outbox;
mod page;
mod pause;
mod postgres;
mod process;
mod row;
mod schedule;
mod schema;
mod setting;
mod snapshot;
mod sql;
mod step;
mod task;
mod text_enum;
mod timestamp;
pub mod transition;
mod vm;

pub use access::{ApiSession, ApiToken, AuditEntry, Scope};
pub use deletion::Deletion;
pub use disk::{Disk, InspectedDisk};
pub use dump::{DumpSummary, Loaded, TableSummary};
pub use error::{Error, Result};
pub use figures::{Figures, GuestFigures, ScheduleFigures};
pub use history::{Growth, SnapshotSummary};
pub use id::{AuditId, JobId, MessageId, NodeId, ScheduleId, StepId, TargetId, TaskId, VmId};
pub use job::{Job, JobKind, NewJob, Outcome};
pub use membership::CertificateState;
pub use node::{Cluster, NewNode, Node};
pub use notify::{Decision, Failing, NotifyTarget, Situation};
pub use open::Catalog;
pub use outbox::{MessageOutcome, OutboxMessage};
pub use page::{Cursor, Page};
pub use postgres::is_postgres_url;
pub use process::{Liveness, ProcessIdentity};
pub use schedule::{RunOutcome, Schedule, ScheduleRun};
pub use schema::newest_schema;
pub use snapshot::{Consistency, Snapshot, SnapshotState};
pub use step::{NewStep, Step};
pub use task::{NewTask, Task, TaskEnd, TaskState};
pub use transition::{JobState, StepState};
pub use vm::{Connection, ConnectionKind, Inspection, NewVm, Vm, VmRole, VmState};
