//! Long histories of snapshots, in parts and sums: what pages and graphs show. Nothing here reads
//! more rows than it gives, but for sums over an index. SQLite joins in the order that `CROSS JOIN`
//! says: guests are few, snapshots many.

use serde::Serialize;
use time::OffsetDateTime;

use crate::error::{Result, database};
use crate::open::Catalog;
use crate::page::{Cursor, Page, page_of};
use crate::row::Fields;
use crate::snapshot::{Snapshot, from_row};
use crate::sql::{Row, query};

/// The size of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotSummary {
    /// The name of its guest.
    #[serde(skip)]
    pub vm_name: String,
    /// The instant it shows.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Bytes that no earlier snapshot held.
    pub bytes_new: u64,
    /// Bytes that the repository grew by.
    pub bytes_stored: u64,
}

/// What one day's snapshots brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// The day, UTC: `2026-11-23`.
    pub day: String,
    /// Bytes read from guests.
    pub bytes_read: u64,
    /// Bytes that no earlier snapshot held.
    pub bytes_new: u64,
    /// Bytes that repositories grew by.
    pub bytes_stored: u64,
    /// Snapshots.
    pub snapshots: u64,
}

impl Catalog {
    /// Snapshots, the latest first: of one guest or of all.
    pub async fn snapshots_page(
        &self,
        vm: Option<&str>,
        after: Option<&Cursor>,
        limit: u32,
    ) -> Result<Page<Snapshot>> {
        let sql = match vm {
            Some(_) => {
                "SELECT * FROM snapshot WHERE vm_name = $4 AND (time < $1 OR (time = $1 AND id < $2)) \
                 ORDER BY time DESC, id DESC LIMIT $3"
            }
            None => {
                "SELECT * FROM snapshot WHERE time < $1 OR (time = $1 AND id < $2) \
                 ORDER BY time DESC, id DESC LIMIT $3"
            }
        };
        let cursor = after.cloned().unwrap_or_else(Cursor::beginning);
        let mut page = query(sql)
            .bind(&cursor.time)
            .bind(&cursor.id)
            .bind(i64::from(limit) + 1);
        if let Some(vm) = vm {
            page = page.bind(vm);
        }
        let mut read = self.read().await?;
        let rows = page
            .fetch_all(&mut read)
            .await
            .map_err(database("list snapshots"))?;
        let snapshots = rows.iter().map(from_row).collect::<Result<Vec<_>>>()?;
        Ok(page_of(snapshots, limit, |snapshot| {
            Cursor::at(snapshot.time, &snapshot.id)
        }))
    }

    /// The latest snapshot of every guest of the table that has one. One that several repositories
    /// hold may come more than once.
    pub async fn latest_snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT s.* FROM vm v CROSS JOIN snapshot s WHERE s.vm_name = v.name \
             AND s.time = (SELECT MAX(l.time) FROM snapshot l WHERE l.vm_name = v.name)",
        )
        .fetch_all(&mut read)
        .await
        .map_err(database("list the latest snapshots"))?;
        rows.iter().map(from_row).collect()
    }

    /// The sizes of each guest's last `count` snapshots, the oldest first.
    pub async fn trends(&self, count: u32) -> Result<Vec<SnapshotSummary>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT s.vm_name, s.time, s.bytes_new, s.bytes_stored FROM vm v CROSS JOIN snapshot s \
             WHERE s.vm_name = v.name AND s.time >= COALESCE((SELECT o.time FROM snapshot o \
             WHERE o.vm_name = v.name ORDER BY o.time DESC LIMIT 1 OFFSET $1), '') \
             ORDER BY v.name, s.time",
        )
        .bind(i64::from(count) - 1)
        .fetch_all(&mut read)
        .await
        .map_err(database("list the sizes of snapshots"))?;
        rows.iter().map(summary).collect()
    }

    /// What each day's snapshots brought, the first day first; at most the last `days` of them.
    pub async fn growth(&self, days: u32) -> Result<Vec<Growth>> {
        let mut read = self.read().await?;
        let rows = query(
            "SELECT SUBSTR(time, 1, 10) AS day, CAST(SUM(bytes_read) AS BIGINT) AS bytes_read, \
             CAST(SUM(bytes_new) AS BIGINT) AS bytes_new, \
             CAST(SUM(bytes_stored) AS BIGINT) AS bytes_stored, COUNT(*) AS snapshots \
             FROM snapshot GROUP BY SUBSTR(time, 1, 10) ORDER BY day DESC LIMIT $1",
        )
        .bind(i64::from(days))
        .fetch_all(&mut read)
        .await
        .map_err(database("sum up snapshots"))?;
        let mut days = rows.iter().map(growth).collect::<Result<Vec<_>>>()?;
        days.reverse();
        Ok(days)
    }
}

fn summary(row: &Row) -> Result<SnapshotSummary> {
    let fields = Fields::new("snapshot", row);
    Ok(SnapshotSummary {
        vm_name: fields.text("vm_name")?,
        time: fields.time("time")?,
        bytes_new: fields.count("bytes_new")?,
        bytes_stored: fields.count("bytes_stored")?,
    })
}

fn growth(row: &Row) -> Result<Growth> {
    let fields = Fields::new("snapshot", row);
    Ok(Growth {
        day: fields.text("day")?,
        bytes_read: fields.count("bytes_read")?,
        bytes_new: fields.count("bytes_new")?,
        bytes_stored: fields.count("bytes_stored")?,
        snapshots: fields.count("snapshots")?,
    })
}
