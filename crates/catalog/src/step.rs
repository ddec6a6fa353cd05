//! The journal of a job. Before each step that changes something outside, how to undo it is
//! registered here and is on disk; recovery after a crash executes what is open, last first.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::{JobId, StepId};
use crate::job;
use crate::open::Catalog;
use crate::row::Fields;
use crate::sql::{Row, Transaction, query};
use crate::timestamp;
use crate::transition::{Change, StepState, check};

/// A step of a job's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its id.
    pub id: StepId,
    /// The job it belongs to.
    pub job_id: JobId,
    /// Its place in the journal, from 0.
    pub seq: u64,
    /// What it does.
    pub name: String,
    /// Where it stands.
    pub state: StepState,
    /// How to undo it; the shape is known to whoever registered it.
    pub undo: Value,
    /// When it came to its state.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A step to register.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStep {
    /// What it does.
    pub name: String,
    /// How to undo it.
    pub undo: Value,
}

impl Catalog {
    /// Registers how to undo a step, before the step is done. On disk when this returns.
    pub async fn register_step(&self, job: &JobId, name: &str, undo: &Value) -> Result<StepId> {
        let mut write = self.write().await?;
        job::refuse_if_ended(&mut write, job).await?;
        let id = append(&mut write, job, name, undo).await?;
        self.commit(write).await?;
        Ok(id)
    }

    /// Registers several steps, all or none, at the cost of one.
    pub async fn register_many(&self, job: &JobId, steps: &[NewStep]) -> Result<Vec<StepId>> {
        let mut write = self.write().await?;
        job::refuse_if_ended(&mut write, job).await?;
        let mut ids = Vec::with_capacity(steps.len());
        for step in steps {
            ids.push(append(&mut write, job, &step.name, &step.undo).await?);
        }
        self.commit(write).await?;
        Ok(ids)
    }

    /// Records that a registered step took place.
    pub async fn mark_done(&self, step: StepId) -> Result<()> {
        self.mark(&[step], StepState::Done).await
    }

    /// Records that the undo of a step was executed.
    pub async fn mark_undone(&self, step: StepId) -> Result<()> {
        self.mark(&[step], StepState::Undone).await
    }

    /// Records that the undo of a step is not needed any more.
    pub async fn release(&self, step: StepId) -> Result<()> {
        self.mark(&[step], StepState::Released).await
    }

    /// Releases several steps, all or none.
    pub async fn release_many(&self, steps: &[StepId]) -> Result<()> {
        self.mark(steps, StepState::Released).await
    }

    async fn mark(&self, steps: &[StepId], to: StepState) -> Result<()> {
        let mut write = self.write().await?;
        for &step in steps {
            change(&mut write, step, to).await?;
        }
        self.commit(write).await
    }

    /// The steps of a job that are still to be undone, should it end now: the last one first.
    pub async fn open_steps(&self, job: &JobId) -> Result<Vec<Step>> {
        let mut steps = self.steps(job).await?;
        steps.retain(|step| step.state.is_open());
        steps.reverse();
        Ok(steps)
    }

    /// The whole journal of a job, in the order of registration.
    pub async fn steps(&self, job: &JobId) -> Result<Vec<Step>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM step WHERE job_id = $1 ORDER BY seq")
            .bind(job.as_str())
            .fetch_all(&mut read)
            .await
            .map_err(database("read a journal"))?;
        rows.iter().map(from_row).collect()
    }
}

/// Appends a registered step to the journal of a job.
pub(crate) async fn append(
    write: &mut Transaction,
    job: &JobId,
    name: &str,
    undo: &Value,
) -> Result<StepId> {
    let id = StepId::random()?;
    query(
        "INSERT INTO step (id, job_id, seq, name, state, undo, at) VALUES ($1, $2, \
         (SELECT COALESCE(MAX(seq) + 1, 0) FROM step WHERE job_id = $2), $3, $4, $5, $6)",
    )
    .bind(id.0)
    .bind(job.as_str())
    .bind(name)
    .bind(StepState::Registered.as_str())
    .bind(undo.to_string())
    .bind(timestamp::to_text(timestamp::now()))
    .execute(write)
    .await
    .map_err(database("register a step"))?;
    Ok(id)
}

/// Changes the state of a step, if the life of a step has that change.
pub(crate) async fn change(write: &mut Transaction, id: StepId, to: StepState) -> Result<()> {
    let row = query("SELECT * FROM step WHERE id = $1")
        .bind(id.0)
        .fetch_optional(write)
        .await
        .map_err(database("find a step"))?;
    let step = from_row(&row.ok_or(Error::NoStep { step: id })?)?;
    check(Change::Step(step.state, to))?;
    query("UPDATE step SET state = $2, at = $3 WHERE id = $1")
        .bind(id.0)
        .bind(to.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .execute(write)
        .await
        .map_err(database("change a step"))?;
    Ok(())
}

/// How many steps of a job are open.
pub(crate) async fn count_open(transaction: &mut Transaction, job: &JobId) -> Result<u64> {
    let row =
        query("SELECT COUNT(*) AS open FROM step WHERE job_id = $1 AND state NOT IN ($2, $3)")
            .bind(job.as_str())
            .bind(StepState::Undone.as_str())
            .bind(StepState::Released.as_str())
            .fetch_one(transaction)
            .await
            .map_err(database("count open steps"))?;
    Fields::new("step", &row).count("open")
}

fn from_row(row: &Row) -> Result<Step> {
    let fields = Fields::new("step", row);
    Ok(Step {
        id: StepId(fields.signed("id")?),
        job_id: fields.parse("job_id")?,
        seq: fields.count("seq")?,
        name: fields.text("name")?,
        state: fields.parse("state")?,
        undo: fields.json("undo")?,
        at: fields.time("at")?,
    })
}
