//! Deletions that wait: snapshots that somebody forgot, and that are removed when a delay is over.
//!
//! Here is only when. A row that is lost deletes nothing, and the delay begins anew.

use serde::Serialize;
use time::OffsetDateTime;

use crate::error::{Result, database};
use crate::open::Catalog;
use crate::row::Fields;
use crate::sql::{Row, query};
use crate::timestamp;

/// A snapshot that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// The repository that holds it.
    pub repository_id: String,
    /// Its id, whole.
    pub snapshot_id: String,
    /// When it was forgotten.
    #[serde(with = "time::serde::rfc3339")]
    pub asked_at: OffsetDateTime,
    /// When it may be removed.
    #[serde(with = "time::serde::rfc3339")]
    pub due_at: OffsetDateTime,
}

impl Catalog {
    /// Notes that snapshots may be removed at `due_at`, for those where nothing is noted yet: who asks
    /// again changes nothing.
    pub async fn put_off_deletion(
        &self,
        repository_id: &str,
        ids: &[String],
        due_at: OffsetDateTime,
    ) -> Result<()> {
        let now = timestamp::to_text(timestamp::now());
        let mut write = self.write().await?;
        for id in ids {
            query(
                "INSERT INTO deletion (repository_id, snapshot_id, asked_at, due_at) \
                 VALUES ($1, $2, $3, $4) ON CONFLICT (repository_id, snapshot_id) DO NOTHING",
            )
            .bind(repository_id)
            .bind(id)
            .bind(&now)
            .bind(timestamp::to_text(due_at))
            .execute(&mut write)
            .await
            .map_err(database("put off a deletion"))?;
        }
        self.commit(write).await
    }

    /// Those of one repository, or of all; what is due first comes first.
    pub async fn deletions(&self, repository_id: Option<&str>) -> Result<Vec<Deletion>> {
        let mut read = self.read().await?;
        let rows = query("SELECT * FROM deletion ORDER BY due_at, snapshot_id")
            .fetch_all(&mut read)
            .await
            .map_err(database("list deletions that wait"))?;
        let mut all = rows.iter().map(from_row).collect::<Result<Vec<_>>>()?;
        all.retain(|one| repository_id.is_none_or(|id| one.repository_id == id));
        Ok(all)
    }

    /// Takes deletions out: the snapshots stay, or are gone. Returns how many were noted.
    pub async fn drop_deletions(&self, repository_id: &str, ids: &[String]) -> Result<u64> {
        let mut write = self.write().await?;
        let mut dropped = 0;
        for id in ids {
            let one = query("DELETE FROM deletion WHERE repository_id = $1 AND snapshot_id = $2")
                .bind(repository_id)
                .bind(id)
                .execute(&mut write)
                .await
                .map_err(database("take back a deletion"))?;
            dropped += one.rows_affected();
        }
        self.commit(write).await?;
        Ok(dropped)
    }
}

fn from_row(row: &Row) -> Result<Deletion> {
    let fields = Fields::new("deletion", row);
    Ok(Deletion {
        repository_id: fields.text("repository_id")?,
        snapshot_id: fields.text("snapshot_id")?,
        asked_at: fields.time("asked_at")?,
        due_at: fields.time("due_at")?,
    })
}
