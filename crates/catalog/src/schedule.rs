//! Schedules, and what became of each of their due times.
//!
//! A run is claimed by its row: the key is schedule, due time and subject, so that one due time is
//! worked on once, by whichever process of whichever host comes first, also after a restart and
//! after the clock was set back.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::ScheduleId;
use crate::open::Catalog;
use crate::process::ProcessIdentity;
use crate::row::Fields;
use crate::sql::{Row, query};
use crate::text_enum::text_enum;
use crate::timestamp;

text_enum!(
    /// How a run ended.
    RunOutcome {
        /// Well.
        Done = "done",
        /// Well, with warnings.
        Warnings = "warnings",
        /// Not well.
        Failed = "failed",
        /// It was not begun in time.
        Missed = "missed",
        /// Its process is gone.
        Interrupted = "interrupted",
    }
);

/// A schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// Its name, which no other has.
    pub name: String,
    /// What is done, and when.
    pub spec: Value,
    /// Whether it is followed.
    pub enabled: bool,
    /// When it was made: what was due before is not.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// What a due time brought for a subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRun {
    /// Of which schedule.
    pub schedule_id: ScheduleId,
    /// When it was due.
    #[serde(with = "time::serde::rfc3339")]
    pub due_at: OffsetDateTime,
    /// The guest's id, or another word.
    pub subject: String,
    /// Who works, or worked, on it.
    pub owner: ProcessIdentity,
    /// When it was begun.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// How it ended.
    pub outcome: Option<RunOutcome>,
    /// A snapshot's id, or what went wrong.
    pub note: Option<String>,
}

impl Catalog {
    /// Adds a schedule. [`Error::ScheduleExists`] if another has the name.
    pub async fn add_schedule(&self, name: &str, spec: &Value) -> Result<ScheduleId> {
        if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            return Err(Error::Invalid {
                what: "the name of the schedule",
                why: "it is empty, too long, or holds a control character".to_owned(),
            });
        }
        let id = ScheduleId::random()?;
        let mut write = self.write().await?;
        let added = query(
            "INSERT INTO schedule (id, name, spec, enabled, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.as_str())
        .bind(name)
        .bind(spec.to_string())
        .bind(true)
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await;
        match added {
            Ok(_) => self.commit(write).await.map(|()| id),
            Err(error) if is_taken(&error) => Err(Error::ScheduleExists {
                name: name.to_owned(),
            }),
            Err(error) => Err(database("add a schedule")(error)),
        }
    }

    /// The schedules, by name.
    pub async fn schedules(&self) -> Result<Vec<Schedule>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM schedule ORDER BY name")
            .fetch_all(&mut read)
            .await
            .map_err(database("list schedules"))?;
        rows.iter().map(schedule).collect()
    }

    /// The schedule of this name. [`Error::NoSchedule`] if there is none.
    pub async fn schedule(&self, name: &str) -> Result<Schedule> {
        let mut read = self.read().await?;
        let row = query("SELECT * FROM schedule WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut read)
            .await
            .map_err(database("find a schedule"))?;
        row.as_ref().map(schedule).transpose()?.ok_or_else(|| {
            let name = name.to_owned();
            Error::NoSchedule { name }
        })
    }

    /// Removes a schedule and what is known of its runs.
    pub async fn remove_schedule(&self, id: &ScheduleId) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM schedule WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut write)
            .await
            .map_err(database("remove a schedule"))?;
        self.commit(write).await
    }

    /// Says whether a schedule is followed.
    pub async fn enable_schedule(&self, id: &ScheduleId, enabled: bool) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE schedule SET enabled = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(enabled)
            .execute(&mut write)
            .await
            .map_err(database("change a schedule"))?;
        self.commit(write).await
    }

    /// Claims a run for this process. `false`: somebody has it, or had it.
    pub async fn claim_run(
        &self,
        id: &ScheduleId,
        due_at: OffsetDateTime,
        subject: &str,
    ) -> Result<bool> {
        let owner = serde_json::to_string(&ProcessIdentity::of_self()?).unwrap_or_default();
        let mut write = self.write().await?;
        let claimed = query(
            "INSERT INTO schedule_run (schedule_id, due_at, subject, owner, started_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (schedule_id, due_at, subject) DO NOTHING",
        )
        .bind(id.as_str())
        .bind(timestamp::to_text(due_at))
        .bind(subject)
        .bind(owner)
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("claim a run"))?;
        self.commit(write).await?;
        Ok(claimed.rows_affected() == 1)
    }

    /// Notes how a run ended.
    pub async fn finish_run(
        &self,
        id: &ScheduleId,
        due_at: OffsetDateTime,
        subject: &str,
        outcome: RunOutcome,
        note: Option<&str>,
    ) -> Result<()> {
        let mut write = self.write().await?;
        query(
            "UPDATE schedule_run SET ended_at = $4, outcome = $5, note = $6 \
             WHERE schedule_id = $1 AND due_at = $2 AND subject = $3",
        )
        .bind(id.as_str())
        .bind(timestamp::to_text(due_at))
        .bind(subject)
        .bind(timestamp::to_text(timestamp::now()))
        .bind(outcome.as_str())
        .bind(note)
        .execute(&mut write)
        .await
        .map_err(database("note the end of a run"))?;
        self.commit(write).await
    }

    /// The latest runs of a schedule, the latest due time first.
    pub async fn runs(&self, id: &ScheduleId, limit: u32) -> Result<Vec<ScheduleRun>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT * FROM schedule_run WHERE schedule_id = $1 \
             ORDER BY due_at DESC, started_at DESC LIMIT $2",
        )
        .bind(id.as_str())
        .bind(i64::from(limit))
        .fetch_all(&mut read)
        .await
        .map_err(database("list runs"))?;
        rows.iter().map(run).collect()
    }

    /// What one due time brought, the first begun first.
    pub async fn runs_of(
        &self,
        id: &ScheduleId,
        due_at: OffsetDateTime,
    ) -> Result<Vec<ScheduleRun>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT * FROM schedule_run WHERE schedule_id = $1 AND due_at = $2 ORDER BY started_at",
        )
        .bind(id.as_str())
        .bind(timestamp::to_text(due_at))
        .fetch_all(&mut read)
        .await
        .map_err(database("list the runs of a due time"))?;
        rows.iter().map(run).collect()
    }

    /// The latest due time that was begun for a subject.
    pub async fn latest_due(
        &self,
        id: &ScheduleId,
        subject: &str,
    ) -> Result<Option<OffsetDateTime>> {
        let mut read = self.read().await?;
        let row = query(
            "SELECT MAX(due_at) AS due_at FROM schedule_run WHERE schedule_id = $1 AND subject = $2",
        )
        .bind(id.as_str())
        .bind(subject)
        .fetch_one(&mut read)
        .await
        .map_err(database("find the latest run"))?;
        Fields::new("schedule_run", &row).optional_time("due_at")
    }

    /// The runs that were cut off: not ended, and their process, of this host, is gone.
    pub async fn dead_runs(&self) -> Result<Vec<ScheduleRun>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM schedule_run WHERE ended_at IS NULL")
            .fetch_all(&mut read)
            .await
            .map_err(database("list runs that were cut off"))?;
        let mut runs = rows.iter().map(run).collect::<Result<Vec<_>>>()?;
        runs.retain(|run| run.owner.is_dead());
        Ok(runs)
    }

    /// Forgets runs that were due before `before`.
    pub async fn forget_runs(&self, before: OffsetDateTime) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM schedule_run WHERE due_at < $1 AND ended_at IS NOT NULL")
            .bind(timestamp::to_text(before))
            .execute(&mut write)
            .await
            .map_err(database("forget runs"))?;
        self.commit(write).await
    }
}

fn is_taken(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    database.is_some_and(|error| error.is_unique_violation())
}

pub(crate) fn schedule(row: &Row) -> Result<Schedule> {
    let fields = Fields::new("schedule", row);
    Ok(Schedule {
        id: fields.parse("id")?,
        name: fields.text("name")?,
        spec: fields.json("spec")?,
        enabled: fields.flag("enabled")?,
        created_at: fields.time("created_at")?,
    })
}

pub(crate) fn run(row: &Row) -> Result<ScheduleRun> {
    let fields = Fields::new("schedule_run", row);
    let owner = fields.json("owner")?;
    Ok(ScheduleRun {
        schedule_id: fields.parse("schedule_id")?,
        due_at: fields.time("due_at")?,
        subject: fields.text("subject")?,
        owner: serde_json::from_value(owner).map_err(|error| Error::Damaged {
            table: "schedule_run",
            column: "owner",
            value: error.to_string(),
        })?,
        started_at: fields.time("started_at")?,
        ended_at: fields.optional_time("ended_at")?,
        outcome: fields.optional_parse("outcome")?,
        note: fields.optional_text("note")?,
    })
}
