//! Messages on their way. One is claimed by its row, and the claim counts for as long as its process
//! lives, so that two that deliver never send the same, and what a dead one had is sent by the next.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::error::{Error, Result, database};
use crate::id::{MessageId, TargetId};
use crate::notify::NotifyTarget;
use crate::open::Catalog;
use crate::process::ProcessIdentity;
use crate::row::Fields;
use crate::sql::{Row, Session, query};
use crate::text_enum::text_enum;
use crate::timestamp;

/// A claim that is older counts no more: no delivery takes as long, and the claim of another host's
/// process must end some time.
const LEASE: Duration = Duration::hours(2);

text_enum!(
    /// What became of a message.
    MessageOutcome {
        /// It was taken.
        Delivered = "delivered",
        /// It was tried for long enough.
        GivenUp = "given-up",
    }
);

/// A message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboxMessage {
    /// Its id: the same in each attempt.
    pub id: MessageId,
    /// Whom it is for.
    pub target_id: TargetId,
    /// What it says.
    pub document: Value,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the next attempt is due.
    #[serde(with = "time::serde::rfc3339")]
    pub due_at: OffsetDateTime,
    /// Attempts that were begun.
    pub attempts: u64,
    /// When it was taken or given up.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Which of the two.
    pub outcome: Option<MessageOutcome>,
    /// Why the last attempt failed.
    pub note: Option<String>,
}

impl Catalog {
    /// Claims messages that are due, for targets that this host can tell: an attempt of each begins.
    pub async fn claim_messages(
        &self,
        host: &str,
        now: OffsetDateTime,
        limit: usize,
    ) -> Result<Vec<(NotifyTarget, OutboxMessage)>> {
        // Mostly there is none, and a look disturbs nobody.
        if due(&mut *self.read().await?, now).await?.is_empty() {
            return Ok(Vec::new());
        }
        let targets = self.notify_targets().await?;
        let owner = serde_json::to_string(&ProcessIdentity::of_self()?).unwrap_or_default();
        let mut write = self.write().await?;
        let mut claimed = Vec::new();
        for (mut message, claim) in due(&mut write, now).await? {
            let target = targets.iter().find(|one| one.id == message.target_id);
            let Some(target) = target.filter(|one| one.host.as_deref().is_none_or(|h| h == host))
            else {
                continue;
            };
            if claimed.len() >= limit || claim.is_some_and(|claim| claim.holds(now)) {
                continue;
            }
            query(
                "UPDATE notify_message SET owner = $2, claimed_at = $3, attempts = attempts + 1 \
                 WHERE id = $1",
            )
            .bind(message.id.as_str())
            .bind(&owner)
            .bind(timestamp::to_text(now))
            .execute(&mut write)
            .await
            .map_err(database("claim a message"))?;
            message.attempts += 1;
            claimed.push((target.clone(), message));
        }
        self.commit(write).await?;
        Ok(claimed)
    }

    /// Notes that a message was taken, or given up.
    pub async fn end_message(
        &self,
        id: &MessageId,
        outcome: MessageOutcome,
        note: Option<&str>,
    ) -> Result<()> {
        let mut write = self.write().await?;
        query(
            "UPDATE notify_message SET ended_at = $2, outcome = $3, note = $4, owner = NULL \
             WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(timestamp::to_text(timestamp::now()))
        .bind(outcome.as_str())
        .bind(note)
        .execute(&mut write)
        .await
        .map_err(database("note what became of a message"))?;
        self.commit(write).await
    }

    /// Gives a message back, for another attempt at `due_at`.
    pub async fn put_message_back(
        &self,
        id: &MessageId,
        due_at: OffsetDateTime,
        note: &str,
    ) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE notify_message SET due_at = $2, note = $3, owner = NULL WHERE id = $1")
            .bind(id.as_str())
            .bind(timestamp::to_text(due_at))
            .bind(note)
            .execute(&mut write)
            .await
            .map_err(database("put a message back"))?;
        self.commit(write).await
    }

    /// Gives up what was made before `before`, also what only a host that is gone could tell.
    pub async fn give_up_messages(&self, before: OffsetDateTime) -> Result<()> {
        let mut write = self.write().await?;
        query(
            "UPDATE notify_message SET ended_at = $2, outcome = $3, owner = NULL \
             WHERE ended_at IS NULL AND created_at < $1",
        )
        .bind(timestamp::to_text(before))
        .bind(timestamp::to_text(timestamp::now()))
        .bind(MessageOutcome::GivenUp.as_str())
        .execute(&mut write)
        .await
        .map_err(database("give messages up"))?;
        self.commit(write).await
    }

    /// The latest messages for a target, the latest first.
    pub async fn messages(&self, target: &TargetId, limit: u32) -> Result<Vec<OutboxMessage>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT * FROM notify_message WHERE target_id = $1 ORDER BY created_at DESC, id LIMIT $2",
        )
        .bind(target.as_str())
        .bind(i64::from(limit))
        .fetch_all(&mut read)
        .await
        .map_err(database("list messages"))?;
        rows.iter().map(message).collect()
    }

    /// Forgets messages that ended before `before`.
    pub async fn forget_messages(&self, before: OffsetDateTime) -> Result<()> {
        let mut write = self.write().await?;
        query("DELETE FROM notify_message WHERE ended_at < $1")
            .bind(timestamp::to_text(before))
            .execute(&mut write)
            .await
            .map_err(database("forget messages"))?;
        self.commit(write).await
    }
}

/// Adds a message, which is due at once.
pub(crate) async fn add(
    write: &mut Session,
    id: &MessageId,
    target: &TargetId,
    document: &Value,
) -> Result<()> {
    let now = timestamp::to_text(timestamp::now());
    query(
        "INSERT INTO notify_message (id, target_id, document, created_at, due_at, attempts) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(id.as_str())
    .bind(target.as_str())
    .bind(document.to_string())
    .bind(&now)
    .bind(&now)
    .bind(0i64)
    .execute(write)
    .await
    .map_err(database("add a message"))?;
    Ok(())
}

/// Who has a message, and since when.
struct Claim {
    owner: ProcessIdentity,
    at: OffsetDateTime,
}

impl Claim {
    fn holds(&self, now: OffsetDateTime) -> bool {
        !self.owner.is_dead() && now - self.at < LEASE
    }
}

async fn due(
    session: &mut Session,
    now: OffsetDateTime,
) -> Result<Vec<(OutboxMessage, Option<Claim>)>> {
    let rows = query(
        "SELECT * FROM notify_message WHERE ended_at IS NULL AND due_at <= $1 \
         ORDER BY due_at, id LIMIT 1000",
    )
    .bind(timestamp::to_text(now))
    .fetch_all(session)
    .await
    .map_err(database("list messages that are due"))?;
    rows.iter()
        .map(|row| Ok((message(row)?, claim(row)?)))
        .collect()
}

fn claim(row: &Row) -> Result<Option<Claim>> {
    let fields = Fields::new("notify_message", row);
    let (owner, at) = (
        fields.optional_json("owner")?,
        fields.optional_time("claimed_at")?,
    );
    let (Some(owner), Some(at)) = (owner, at) else {
        return Ok(None);
    };
    let owner = serde_json::from_value(owner).map_err(|error| Error::Damaged {
        table: "notify_message",
        column: "owner",
        value: error.to_string(),
    })?;
    Ok(Some(Claim { owner, at }))
}

fn message(row: &Row) -> Result<OutboxMessage> {
    let fields = Fields::new("notify_message", row);
    Ok(OutboxMessage {
        id: fields.parse("id")?,
        target_id: fields.parse("target_id")?,
        document: fields.json("document")?,
        created_at: fields.time("created_at")?,
        due_at: fields.time("due_at")?,
        attempts: fields.count("attempts")?,
        ended_at: fields.optional_time("ended_at")?,
        outcome: fields.optional_parse("outcome")?,
        note: fields.optional_text("note")?,
    })
}
