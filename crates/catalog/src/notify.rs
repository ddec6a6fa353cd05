//! Whom to tell of what goes wrong, what fails at present, and the step from what happened to
//! messages: one transaction, so that whatever dies, all is told and nothing twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::{MessageId, ScheduleId, TargetId};
use crate::open::Catalog;
use crate::outbox;
use crate::row::Fields;
use crate::schedule::{self, ScheduleRun};
use crate::sql::{Row, Session, query};
use crate::timestamp;

/// Longest name of a target, bytes.
const MAX_NAME_BYTES: usize = 64;

/// Somebody, or something, that is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotifyTarget {
    /// Its id.
    pub id: TargetId,
    /// Its name, which no other has.
    pub name: String,
    /// How, and of what.
    pub spec: Value,
    /// The one host that can tell it; none: any.
    pub host: Option<String>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Something that fails at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// Since when.
    pub since: OffsetDateTime,
    /// When somebody was told last.
    pub told_at: Option<OffsetDateTime>,
}

/// What a decision is made of.
#[derive(Debug, Default)]
pub struct Situation {
    /// The ended runs of which nobody was told yet.
    pub runs: Vec<ScheduleRun>,
    /// What fails, by subject.
    pub failing: BTreeMap<String, Failing>,
    /// Who may be told.
    pub targets: Vec<NotifyTarget>,
}

/// What is to be noted and told.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// What fails from now on, or still.
    pub failing: Vec<(String, Failing)>,
    /// What does not fail any more.
    pub mended: Vec<String>,
    /// To whom, and what.
    pub messages: Vec<(TargetId, Value)>,
}

impl Catalog {
    /// Adds somebody to tell. [`Error::TargetExists`] if another has the name.
    pub async fn add_notify_target(
        &self,
        name: &str,
        spec: &Value,
        host: Option<&str>,
    ) -> Result<TargetId> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
            return Err(Error::Invalid {
                what: "the name of the notification",
                why: "it must be letters, digits, '-', '_' and '.', up to 64 of them".to_owned(),
            });
        }
        let id = TargetId::random()?;
        let mut write = self.write().await?;
        let added = query(
            "INSERT INTO notify_target (id, name, spec, host, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING",
        )
        .bind(id.as_str())
        .bind(name)
        .bind(spec.to_string())
        .bind(host)
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("add a notification"))?;
        if added.rows_affected() == 0 {
            let name = name.to_owned();
            return Err(Error::TargetExists { name });
        }
        self.commit(write).await.map(|()| id)
    }

    /// All who may be told, by name.
    pub async fn notify_targets(&self) -> Result<Vec<NotifyTarget>> {
        targets(&mut *self.read().await?).await
    }

    /// Who has this name. [`Error::NoTarget`] if nobody has.
    pub async fn notify_target(&self, name: &str) -> Result<NotifyTarget> {
        let all = self.notify_targets().await?;
        let found = all.into_iter().find(|target| target.name == name);
        found.ok_or_else(|| Error::NoTarget {
            name: name.to_owned(),
        })
    }

    /// Removes one, and the messages to it.
    pub async fn remove_notify_target(&self, id: &TargetId) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM notify_target WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut write)
            .await
            .map_err(database("remove a notification"))?;
        self.commit(write).await
    }

    /// What fails at present, by subject.
    pub async fn failing(&self) -> Result<BTreeMap<String, Failing>> {
        failing(&mut *self.read().await?).await
    }

    /// Due times of which something ended and nobody was told: what a process that died left.
    pub async fn untold(&self) -> Result<Vec<(ScheduleId, OffsetDateTime)>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT DISTINCT schedule_id, due_at FROM schedule_run \
             WHERE told_at IS NULL AND ended_at IS NOT NULL ORDER BY due_at",
        )
        .fetch_all(&mut read)
        .await
        .map_err(database("list runs that nobody was told of"))?;
        let one = |row| {
            let fields = Fields::new("schedule_run", row);
            Ok((fields.parse("schedule_id")?, fields.time("due_at")?))
        };
        rows.iter().map(one).collect()
    }

    /// Turns what happened into messages: notes what `decide` says, and that it was told of the runs
    /// of this due time, all at once. Without a due time the outcomes are `decide`'s own. Returns how
    /// many messages there are now on their way because of it.
    pub async fn tell(
        &self,
        due: Option<(&ScheduleId, OffsetDateTime)>,
        decide: impl FnOnce(&Situation) -> Decision,
    ) -> Result<usize> {
        let mut write = self.write().await?;
        let situation = Situation {
            runs: match due {
                Some((id, at)) => take_untold(&mut write, id, at).await?,
                None => Vec::new(),
            },
            failing: failing(&mut write).await?,
            targets: targets(&mut write).await?,
        };
        let decision = decide(&situation);
        for (subject, failing) in &decision.failing {
            keep_failing(&mut write, subject, *failing).await?;
        }
        for subject in &decision.mended {
            query("DELETE FROM notify_failing WHERE subject = $1")
                .bind(subject)
                .execute(&mut write)
                .await
                .map_err(database("note what is well again"))?;
        }
        for (target, document) in &decision.messages {
            outbox::add(&mut write, &MessageId::random()?, target, document).await?;
        }
        self.commit(write).await?;
        Ok(decision.messages.len())
    }
}

async fn targets(session: &mut Session) -> Result<Vec<NotifyTarget>> {
    let rows = query("SELECT * FROM notify_target ORDER BY name")
        .fetch_all(session)
        .await
        .map_err(database("list notifications"))?;
    rows.iter().map(target).collect()
}

fn target(row: &Row) -> Result<NotifyTarget> {
    let fields = Fields::new("notify_target", row);
    Ok(NotifyTarget {
        id: fields.parse("id")?,
        name: fields.text("name")?,
        spec: fields.json("spec")?,
        host: fields.optional_text("host")?,
        created_at: fields.time("created_at")?,
    })
}

async fn failing(session: &mut Session) -> Result<BTreeMap<String, Failing>> {
    let rows = query("SELECT * FROM notify_failing")
        .fetch_all(session)
        .await
        .map_err(database("list what fails"))?;
    let one = |row| {
        let fields = Fields::new("notify_failing", row);
        let failing = Failing {
            since: fields.time("failing_since")?,
            told_at: fields.optional_time("told_at")?,
        };
        Ok((fields.text("subject")?, failing))
    };
    rows.iter().map(one).collect()
}

async fn keep_failing(write: &mut Session, subject: &str, failing: Failing) -> Result<()> {
    query(
        "INSERT INTO notify_failing (subject, failing_since, told_at) VALUES ($1, $2, $3) \
         ON CONFLICT (subject) DO UPDATE SET failing_since = excluded.failing_since, \
         told_at = excluded.told_at",
    )
    .bind(subject)
    .bind(timestamp::to_text(failing.since))
    .bind(failing.told_at.map(timestamp::to_text))
    .execute(write)
    .await
    .map_err(database("note what fails"))?;
    Ok(())
}

/// The ended runs of a due time of which nobody was told; from here on somebody was.
async fn take_untold(
    write: &mut Session,
    id: &ScheduleId,
    due_at: OffsetDateTime,
) -> Result<Vec<ScheduleRun>> {
    let due_at = timestamp::to_text(due_at);
    let rows = query(
        "SELECT * FROM schedule_run WHERE schedule_id = $1 AND due_at = $2 \
         AND told_at IS NULL AND ended_at IS NOT NULL ORDER BY started_at, subject",
    )
    .bind(id.as_str())
    .bind(&due_at)
    .fetch_all(write)
    .await
    .map_err(database("list runs that nobody was told of"))?;
    query(
        "UPDATE schedule_run SET told_at = $3 WHERE schedule_id = $1 AND due_at = $2 \
         AND told_at IS NULL AND ended_at IS NOT NULL",
    )
    .bind(id.as_str())
    .bind(&due_at)
    .bind(timestamp::to_text(timestamp::now()))
    .execute(write)
    .await
    .map_err(database("note that runs were told of"))?;
    rows.iter().map(schedule::run).collect()
}
