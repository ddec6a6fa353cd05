//! Snapshots: a cache of what the repositories hold, so that listing needs no repository. The
//! repository is the truth; this can be rebuilt from it at any time.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::VmId;
use crate::open::Catalog;
use crate::row::{Fields, stored_count};
use crate::sql::{Row, Transaction, query};
use crate::text_enum::text_enum;
use crate::timestamp;

text_enum!(
    /// What a backup promises about the data in it.
    Consistency {
        /// Every application ended its work: a twin was shut down.
        Application = "application",
        /// Memory and disks of one instant.
        State = "state",
        /// The guest's file systems were frozen.
        Filesystem = "filesystem",
        /// The disks of one instant.
        Crash = "crash",
    }
);

text_enum!(
    /// Whether a snapshot can be used.
    SnapshotState {
        /// All of it is in the repository.
        Complete = "complete",
    }
);

/// A snapshot of a repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id in the repository.
    pub id: String,
    /// The repository that holds it.
    pub repository_id: String,
    /// The VM it is of; the catalog may not hold that VM any more.
    pub vm_id: Option<VmId>,
    /// The name that VM had.
    pub vm_name: String,
    /// The instant it shows.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The promise it keeps.
    pub consistency: Consistency,
    /// The promise that was asked for.
    pub consistency_asked: Consistency,
    /// Bytes read from the VM.
    pub bytes_read: u64,
    /// Bytes that no earlier snapshot held.
    pub bytes_new: u64,
    /// Bytes that the repository grew by.
    pub bytes_stored: u64,
    /// The snapshot it was taken as an increment of.
    pub parent: Option<String>,
    /// Whether it can be used.
    pub state: SnapshotState,
    /// What the backup reported.
    pub report: Value,
}

impl Catalog {
    /// Records a snapshot, or corrects the record of it.
    pub async fn upsert_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let mut write = self.write().await?;
        upsert(&mut write, snapshot).await?;
        self.commit(write).await
    }

    /// The snapshots of the VM of this name, or of all, in the order of their time.
    pub async fn snapshots(&self, vm_name: Option<&str>) -> Result<Vec<Snapshot>> {
        let sql = match vm_name {
            Some(_) => "SELECT * FROM snapshot WHERE vm_name = $1 ORDER BY time, id",
            None => "SELECT * FROM snapshot ORDER BY time, id",
        };
        let mut read = self.read().await?;
        let mut query = query(sql);
        if let Some(name) = vm_name {
            query = query.bind(name);
        }
        let rows = query
            .fetch_all(&mut read)
            .await
            .map_err(database("list snapshots"))?;
        rows.iter().map(from_row).collect()
    }

    /// The snapshots whose id begins so, since people write the first few digits only.
    pub async fn snapshots_by_prefix(&self, prefix: &str) -> Result<Vec<Snapshot>> {
        let length = stored_count("the length of an id", prefix.chars().count() as u64)?;
        let mut read = self.read().await?;
        let rows = query(
            "SELECT * FROM snapshot WHERE SUBSTR(id, 1, CAST($2 AS INTEGER)) = $1 ORDER BY time, id",
        )
        .bind(prefix)
        .bind(length)
        .fetch_all(&mut read)
        .await
        .map_err(database("find a snapshot"))?;
        rows.iter().map(from_row).collect()
    }

    /// Drops the record of a snapshot; its repository is not touched.
    pub async fn remove_snapshot(&self, repository_id: &str, id: &str) -> Result<()> {
        let mut write = self.write().await?;
        let removed = query("DELETE FROM snapshot WHERE repository_id = $1 AND id = $2")
            .bind(repository_id)
            .bind(id)
            .execute(&mut write)
            .await
            .map_err(database("remove a snapshot"))?;
        if removed.rows_affected() == 0 {
            return Err(Error::NoSnapshot { id: id.to_owned() });
        }
        self.commit(write).await
    }

    /// Makes the records of one repository exactly these: rebuilds the cache from the repository.
    pub async fn replace_snapshots_of_repository(
        &self,
        repository_id: &str,
        snapshots: Vec<Snapshot>,
    ) -> Result<()> {
        if let Some(stray) = snapshots
            .iter()
            .find(|one| one.repository_id != repository_id)
        {
            return Err(Error::Invalid {
                what: "the list of snapshots",
                why: format!("{} is of repository {}", stray.id, stray.repository_id),
            });
        }
        let mut write = self.write().await?;
        query("DELETE FROM snapshot WHERE repository_id = $1")
            .bind(repository_id)
            .execute(&mut write)
            .await
            .map_err(database("rebuild the snapshots"))?;
        for snapshot in &snapshots {
            upsert(&mut write, snapshot).await?;
        }
        self.commit(write).await
    }
}

async fn upsert(write: &mut Transaction, snapshot: &Snapshot) -> Result<()> {
    query(
        "INSERT INTO snapshot (repository_id, id, vm_id, vm_name, time, consistency, \
         consistency_asked, bytes_read, bytes_new, bytes_stored, parent, state, report) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
         ON CONFLICT (repository_id, id) DO UPDATE SET vm_id = excluded.vm_id, \
         vm_name = excluded.vm_name, time = excluded.time, consistency = excluded.consistency, \
         consistency_asked = excluded.consistency_asked, bytes_read = excluded.bytes_read, \
         bytes_new = excluded.bytes_new, bytes_stored = excluded.bytes_stored, \
         parent = excluded.parent, state = excluded.state, report = excluded.report",
    )
    .bind(&snapshot.repository_id)
    .bind(&snapshot.id)
    .bind(snapshot.vm_id.as_ref().map(VmId::as_str))
    .bind(&snapshot.vm_name)
    .bind(timestamp::to_text(snapshot.time))
    .bind(snapshot.consistency.as_str())
    .bind(snapshot.consistency_asked.as_str())
    .bind(stored_count("bytes read", snapshot.bytes_read)?)
    .bind(stored_count("new bytes", snapshot.bytes_new)?)
    .bind(stored_count("bytes stored", snapshot.bytes_stored)?)
    .bind(&snapshot.parent)
    .bind(snapshot.state.as_str())
    .bind(snapshot.report.to_string())
    .execute(write)
    .await
    .map_err(database("record a snapshot"))?;
    Ok(())
}

pub(crate) fn from_row(row: &Row) -> Result<Snapshot> {
    let fields = Fields::new("snapshot", row);
    Ok(Snapshot {
        id: fields.text("id")?,
        repository_id: fields.text("repository_id")?,
        vm_id: fields.optional_parse("vm_id")?,
        vm_name: fields.text("vm_name")?,
        time: fields.time("time")?,
        consistency: fields.parse("consistency")?,
        consistency_asked: fields.parse("consistency_asked")?,
        bytes_read: fields.count("bytes_read")?,
        bytes_new: fields.count("bytes_new")?,
        bytes_stored: fields.count("bytes_stored")?,
        parent: fields.optional_text("parent")?,
        state: fields.parse("state")?,
        report: fields.json("report")?,
    })
}
