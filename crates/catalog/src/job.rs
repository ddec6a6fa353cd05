//! Jobs: every piece of long work, the process that owns it, and how it ended. The rule that two
//! live jobs never hold the same guest is kept here, in the transaction that starts a job.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::{JobId, VmId};
use crate::lease;
use crate::open::Catalog;
use crate::process::ProcessIdentity;
use crate::row::{Fields, stored_count};
use crate::setting;
use crate::sql::{Row, Session, Transaction, query, query_built};
use crate::step;
use crate::text_enum::text_enum;
use crate::timestamp;
use crate::transition::{Change, JobState, StepState, check};
use crate::vm;

text_enum!(
    /// What a job does.
    JobKind {
        /// Backs up a guest.
        Backup = "backup",
        /// Restores a snapshot.
        Restore = "restore",
        /// Turns a stored state into an application-consistent disk.
        Settle = "settle",
        /// Starts a twin of a guest, or ends one.
        Twin = "twin",
        /// Proves that a snapshot is whole, or boots.
        Verify = "verify",
        /// Serves the disks of a snapshot.
        Export = "export",
        /// Removes snapshots or what only they held.
        Prune = "prune",
        /// Undoes what a job that was cut off had begun.
        Recover = "recover",
        /// Backs up the configuration of a cluster.
        ClusterBackup = "cluster-backup",
        /// Restores the configuration of a cluster.
        ClusterRestore = "cluster-restore",
    }
);

impl JobKind {
    /// True if the job pauses the guest or changes its block graph, so that no other such job may
    /// run on the same guest.
    pub fn holds_guest(self) -> bool {
        matches!(self, Self::Backup | Self::Twin)
    }
}

/// A job of the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The VM it works on, as long as the catalog holds it.
    pub vm_id: Option<VmId>,
    /// The name that VM had when the job started.
    pub vm_name: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// The process that runs it, or ran it.
    pub owner: ProcessIdentity,
    /// When it started.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Why it failed.
    pub error: Option<String>,
    /// What it reported at its end.
    pub report: Option<Value>,
}

/// A job to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// What it does.
    pub kind: JobKind,
    /// The VM it works on, if it works on one.
    pub vm_id: Option<VmId>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Done,
    /// It failed, and what it began was undone.
    Failed {
        /// Why, with the whole chain of causes.
        error: String,
    },
    /// It was cut off, and what it had begun was undone later.
    Undone,
}

impl Outcome {
    fn state(&self) -> JobState {
        match self {
            Self::Done => JobState::Done,
            Self::Failed { .. } => JobState::Failed,
            Self::Undone => JobState::Undone,
        }
    }
}

impl Catalog {
    /// Starts a job of this process. One that holds its guest is refused with [`Error::Busy`]
    /// while another such job of a live process (or of a host we cannot see) does, and with
    /// [`Error::NotRecovered`] while a dead one has open undos. One of a node that was not heard of
    /// for the lease does not count where the VM is on another node.
    pub async fn start_job(&self, new: NewJob) -> Result<JobId> {
        self.start_job_as(new, &ProcessIdentity::of_self()?).await
    }

    /// Starts a job that another process runs.
    pub async fn start_job_as(&self, new: NewJob, owner: &ProcessIdentity) -> Result<JobId> {
        let id = JobId::random()?;
        let mut write = self.write().await?;
        setting::refuse_if_moved(&mut write).await?;
        if let Some(vm_id) = &new.vm_id {
            vm::lock(&mut write, vm_id).await?;
            if new.kind.holds_guest() {
                refuse_if_held(&mut write, vm_id, JobKind::holds_guest).await?;
            }
        }
        insert(&mut write, &id, &new, owner).await?;
        self.commit(write).await?;
        Ok(id)
    }

    /// Ends a job. Every step of its journal must be undone or released before, whatever the
    /// outcome ([`Error::OpenSteps`]): a job that cannot undo a step stays open for recovery.
    pub async fn finish_job(
        &self,
        id: &JobId,
        outcome: Outcome,
        report: Option<&Value>,
    ) -> Result<()> {
        let mut write = self.write().await?;
        let job = find(&mut write, id).await?;
        check(Change::Job(job.state, outcome.state()))?;
        let open = step::count_open(&mut write, id).await?;
        if open > 0 {
            return Err(Error::OpenSteps {
                job: id.clone(),
                open,
            });
        }
        let state = outcome.state();
        let error = match outcome {
            Outcome::Failed { error } => Some(error),
            Outcome::Done => None,
            Outcome::Undone => job.error,
        };
        query("UPDATE job SET state = $2, ended_at = $3, error = $4, report = $5 WHERE id = $1")
            .bind(id.as_str())
            .bind(state.as_str())
            .bind(timestamp::to_text(timestamp::now()))
            .bind(error)
            .bind(report.map(Value::to_string))
            .execute(&mut write)
            .await
            .map_err(database("end a job"))?;
        self.commit(write).await
    }

    /// Notes why a job that cannot end yet is in trouble.
    pub async fn note_error(&self, id: &JobId, error: &str) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE job SET error = $2 WHERE id = $1 AND state = $3")
            .bind(id.as_str())
            .bind(error)
            .bind(JobState::Running.as_str())
            .execute(&mut write)
            .await
            .map_err(database("note an error"))?;
        self.commit(write).await
    }

    /// The jobs that were cut off: running by their row, but their process, of this host, is gone.
    /// The latest first, so that what was done last is undone first.
    pub async fn dead_jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = running(&mut *self.read().await?).await?;
        jobs.retain(|job| job.owner.is_dead());
        Ok(jobs)
    }

    /// Makes this process the owner of a job that was cut off, to recover it. If two processes
    /// try, one gets it and the other [`Error::Busy`].
    pub async fn adopt_job(&self, id: &JobId) -> Result<Job> {
        let owner = ProcessIdentity::of_self()?;
        let mut write = self.write().await?;
        let job = find(&mut write, id).await?;
        if job.state != JobState::Running {
            return Err(Error::Ended { job: id.clone() });
        }
        if !job.owner.is_dead() {
            return Err(busy(job));
        }
        query(
            "UPDATE job SET owner_pid = $2, owner_start = $3, owner_boot = $4, host = $5 \
             WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(i64::from(owner.pid))
        .bind(stored_count("a start time", owner.start_ticks)?)
        .bind(&owner.boot_id)
        .bind(&owner.host)
        .execute(&mut write)
        .await
        .map_err(database("adopt a job"))?;
        self.commit(write).await?;
        Ok(Job { owner, ..job })
    }

    /// The latest jobs, the last one first.
    pub async fn jobs(&self, limit: u32) -> Result<Vec<Job>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM job ORDER BY started_at DESC, id DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&mut read)
            .await
            .map_err(database("list jobs"))?;
        rows.iter().map(from_row).collect()
    }

    /// All jobs that are not over, the last one first: they run, or were cut off.
    pub async fn running_jobs(&self) -> Result<Vec<Job>> {
        running(&mut *self.read().await?).await
    }

    /// The jobs for whose sake what the catalog holds is not replaced, the last one first: all that are
    /// not over. With `force` not those whose host is no node any more, or was not heard of for the
    /// lease: nobody can tell from here that they were cut off.
    pub async fn unfinished_jobs(&self, force: bool) -> Result<Vec<Job>> {
        unfinished(&mut *self.read().await?, force).await
    }

    /// The latest backup of every VM that had one, however it ended.
    pub async fn latest_backups(&self) -> Result<Vec<Job>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT j.* FROM vm v JOIN job j ON j.id = (SELECT l.id FROM job l \
             WHERE l.vm_id = v.id AND l.kind = $1 ORDER BY l.started_at DESC LIMIT 1)",
        )
        .bind(JobKind::Backup.as_str())
        .fetch_all(&mut read)
        .await
        .map_err(database("list the latest backups"))?;
        rows.iter().map(from_row).collect()
    }

    /// One job.
    pub async fn job(&self, id: &JobId) -> Result<Job> {
        find(&mut self.read().await?, id).await
    }
}

/// Refuses if a job of one of these kinds holds the VM, or was cut off on it.
pub(crate) async fn refuse_if_held(
    write: &mut Transaction,
    vm_id: &VmId,
    matters: impl Fn(JobKind) -> bool,
) -> Result<()> {
    let rows = query("SELECT * FROM job WHERE vm_id = $1 AND state = $2 ORDER BY started_at")
        .bind(vm_id.as_str())
        .bind(JobState::Running.as_str())
        .fetch_all(write)
        .await
        .map_err(database("look for jobs of a VM"))?;
    for row in &rows {
        let job = from_row(row)?;
        if !matters(job.kind) {
            continue;
        }
        if !job.owner.is_dead() {
            if lease::is_over(write, vm_id, &job).await? {
                continue;
            }
            return Err(busy(job));
        }
        if step::count_open(write, &job.id).await? > 0 {
            return Err(Error::NotRecovered { job: job.id });
        }
    }
    Ok(())
}

/// Refuses if the job has ended: its journal is closed.
pub(crate) async fn refuse_if_ended(write: &mut Transaction, id: &JobId) -> Result<()> {
    match find(write, id).await?.state {
        JobState::Running => Ok(()),
        _ => Err(Error::Ended { job: id.clone() }),
    }
}

/// Refuses if any job is not over: it runs, or was cut off and is to be recovered first. With `force`
/// jobs of silent hosts are passed over.
pub(crate) async fn refuse_if_unfinished(write: &mut Session, force: bool) -> Result<()> {
    match unfinished(write, force).await?.pop() {
        None => Ok(()),
        Some(job) if job.owner.is_dead() => Err(Error::NotRecovered { job: job.id }),
        Some(job) => Err(busy(job)),
    }
}

async fn unfinished(session: &mut Session, force: bool) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for job in running(session).await? {
        if !(force && lease::is_silent(session, &job.owner.host).await?) {
            jobs.push(job);
        }
    }
    Ok(jobs)
}

async fn running(session: &mut Session) -> Result<Vec<Job>> {
    let rows = query("SELECT * FROM job WHERE state = $1 ORDER BY started_at DESC, id DESC")
        .bind(JobState::Running.as_str())
        .fetch_all(session)
        .await
        .map_err(database("list the jobs that run"))?;
    rows.iter().map(from_row).collect()
}

/// Ends the jobs of a host that is no node any more, and closes their journals: what they began there is
/// undone by nobody. They hold nothing then. Returns how many there were.
pub(crate) async fn end_those_of(write: &mut Session, host: &str, why: &str) -> Result<u64> {
    const THEIRS: &str = "SELECT id FROM job WHERE host = $1 AND state = $2";
    let now = timestamp::to_text(timestamp::now());
    let running = JobState::Running.as_str();
    query_built(format!(
        "UPDATE step SET state = $3, at = $4 WHERE state IN ($5, $6) AND job_id IN ({THEIRS})"
    ))
    .bind(host)
    .bind(running)
    .bind(StepState::Released.as_str())
    .bind(&now)
    .bind(StepState::Registered.as_str())
    .bind(StepState::Done.as_str())
    .execute(write)
    .await
    .map_err(database("close the journals of a host"))?;
    let ended = query(
        "UPDATE job SET state = $3, ended_at = $4, error = $5 WHERE host = $1 AND state = $2",
    )
    .bind(host)
    .bind(running)
    .bind(JobState::Failed.as_str())
    .bind(&now)
    .bind(why)
    .execute(write)
    .await
    .map_err(database("end the jobs of a host"))?;
    Ok(ended.rows_affected())
}

fn busy(job: Job) -> Error {
    Error::Busy {
        job: job.id,
        pid: job.owner.pid,
        host: job.owner.host,
        since: job.started_at,
    }
}

async fn find(transaction: &mut Transaction, id: &JobId) -> Result<Job> {
    let row = query("SELECT * FROM job WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(transaction)
        .await
        .map_err(database("find a job"))?;
    from_row(&row.ok_or_else(|| Error::NoJob { job: id.clone() })?)
}

async fn insert(
    write: &mut Transaction,
    id: &JobId,
    new: &NewJob,
    owner: &ProcessIdentity,
) -> Result<()> {
    query(
        "INSERT INTO job (id, kind, vm_id, vm_name, state, owner_pid, owner_start, owner_boot, \
         host, started_at) \
         VALUES ($1, $2, $3, (SELECT name FROM vm WHERE id = $3), $4, $5, $6, $7, $8, $9)",
    )
    .bind(id.as_str())
    .bind(new.kind.as_str())
    .bind(new.vm_id.as_ref().map(VmId::as_str))
    .bind(JobState::Running.as_str())
    .bind(i64::from(owner.pid))
    .bind(stored_count("a start time", owner.start_ticks)?)
    .bind(&owner.boot_id)
    .bind(&owner.host)
    .bind(timestamp::to_text(timestamp::now()))
    .execute(write)
    .await
    .map_err(database("start a job"))?;
    Ok(())
}

fn from_row(row: &Row) -> Result<Job> {
    let fields = Fields::new("job", row);
    let pid = fields.signed("owner_pid")?;
    Ok(Job {
        id: fields.parse("id")?,
        kind: fields.parse("kind")?,
        vm_id: fields.optional_parse("vm_id")?,
        vm_name: fields.optional_text("vm_name")?,
        state: fields.parse("state")?,
        owner: ProcessIdentity {
            pid: pid.try_into().map_err(|_| Error::Damaged {
                table: "job",
                column: "owner_pid",
                value: pid.to_string(),
            })?,
            start_ticks: fields.count("owner_start")?,
            boot_id: fields.text("owner_boot")?,
            host: fields.text("host")?,
        },
        started_at: fields.time("started_at")?,
        ended_at: fields.optional_time("ended_at")?,
        error: fields.optional_text("error")?,
        report: fields.optional_json("report")?,
    })
}
