//! The virtual disks of a VM: the id the VM knows, and the physical address behind it. For a twin,
//! also to what its disk was switched, and when.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::VmId;
use crate::open::Catalog;
use crate::row::{Fields, stored_count};
use crate::sql::{Row, Transaction, query};
use crate::timestamp;

/// A virtual disk, as an inspection found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedDisk {
    /// The id by which the VM knows the disk, such as `disk0`.
    pub disk_id: String,
    /// The hypervisor's name of the block node.
    pub node: Option<String>,
    /// The hypervisor's path of the device.
    pub qdev: Option<String>,
    /// What is behind it: a file's path, a block device, an iSCSI name, an NBD URI…
    pub address: String,
    /// What kind of thing that is, in the words of the hypervisor.
    pub kind: String,
    /// Its virtual size.
    pub size_bytes: u64,
    /// Its image format.
    pub format: String,
    /// True if the VM cannot write it.
    pub read_only: bool,
    /// True if it belongs to a backup of the VM.
    pub included: bool,
}

/// A row of the catalog: what was inspected, and the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What the last inspection found.
    #[serde(flatten)]
    pub found: InspectedDisk,
    /// To which disk id a twin's disk was switched.
    pub switched_to: Option<String>,
    /// When it was switched.
    #[serde(with = "time::serde::rfc3339::option")]
    pub switched_at: Option<OffsetDateTime>,
}

impl Catalog {
    /// Records that the disk of a twin now is another one.
    pub async fn record_switch(&self, vm: &VmId, disk_id: &str, switched_to: &str) -> Result<()> {
        let mut write = self.write().await?;
        let touched = query(
            "UPDATE disk SET switched_to = $3, switched_at = $4 WHERE vm_id = $1 AND disk_id = $2",
        )
        .bind(vm.as_str())
        .bind(disk_id)
        .bind(switched_to)
        .bind(timestamp::to_text(timestamp::now()))
        .execute(&mut write)
        .await
        .map_err(database("record a switched disk"))?;
        if touched.rows_affected() == 0 {
            return Err(Error::NoDisk {
                disk: disk_id.to_owned(),
            });
        }
        self.commit(write).await
    }
}

/// The disks of every VM, in the order of their inspection.
pub(crate) async fn all(read: &mut Transaction) -> Result<HashMap<VmId, Vec<Disk>>> {
    let rows = query("SELECT * FROM disk ORDER BY vm_id, position")
        .fetch_all(read)
        .await
        .map_err(database("list disks"))?;
    let mut disks: HashMap<VmId, Vec<Disk>> = HashMap::new();
    for row in &rows {
        let vm = Fields::new("disk", row).parse("vm_id")?;
        disks.entry(vm).or_default().push(from_row(row)?);
    }
    Ok(disks)
}

/// The disks of one VM, in the order of their inspection.
pub(crate) async fn of_vm(read: &mut Transaction, vm: &VmId) -> Result<Vec<Disk>> {
    let rows = query("SELECT * FROM disk WHERE vm_id = $1 ORDER BY position")
        .bind(vm.as_str())
        .fetch_all(read)
        .await
        .map_err(database("list disks"))?;
    rows.iter().map(from_row).collect()
}

/// Replaces the disks of a VM; a disk that keeps its id keeps the record of its switch.
pub(crate) async fn replace(
    write: &mut Transaction,
    vm: &VmId,
    found: &[InspectedDisk],
) -> Result<()> {
    let mut before = of_vm(write, vm).await?;
    query("DELETE FROM disk WHERE vm_id = $1")
        .bind(vm.as_str())
        .execute(write)
        .await
        .map_err(database("replace disks"))?;
    for (position, inspected) in found.iter().enumerate() {
        if found[..position]
            .iter()
            .any(|earlier| earlier.disk_id == inspected.disk_id)
        {
            let why = format!("{:?} is reported twice", inspected.disk_id);
            return Err(Error::Invalid {
                what: "the list of disks",
                why,
            });
        }
        let switch = before
            .iter()
            .position(|disk| disk.found.disk_id == inspected.disk_id)
            .map(|at| before.swap_remove(at))
            .map_or((None, None), |disk| (disk.switched_to, disk.switched_at));
        insert(write, vm, position, inspected, switch).await?;
    }
    Ok(())
}

async fn insert(
    write: &mut Transaction,
    vm: &VmId,
    position: usize,
    disk: &InspectedDisk,
    (switched_to, switched_at): (Option<String>, Option<OffsetDateTime>),
) -> Result<()> {
    query(
        "INSERT INTO disk (vm_id, disk_id, position, node, qdev, address, kind, size_bytes, \
         format, read_only, included, switched_to, switched_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(vm.as_str())
    .bind(&disk.disk_id)
    .bind(stored_count("the number of disks", position as u64)?)
    .bind(&disk.node)
    .bind(&disk.qdev)
    .bind(&disk.address)
    .bind(&disk.kind)
    .bind(stored_count("the size of a disk", disk.size_bytes)?)
    .bind(&disk.format)
    .bind(disk.read_only)
    .bind(disk.included)
    .bind(switched_to)
    .bind(switched_at.map(timestamp::to_text))
    .execute(write)
    .await
    .map_err(database("record a disk"))?;
    Ok(())
}

fn from_row(row: &Row) -> Result<Disk> {
    let fields = Fields::new("disk", row);
    Ok(Disk {
        found: InspectedDisk {
            disk_id: fields.text("disk_id")?,
            node: fields.optional_text("node")?,
            qdev: fields.optional_text("qdev")?,
            address: fields.text("address")?,
            kind: fields.text("kind")?,
            size_bytes: fields.count("size_bytes")?,
            format: fields.text("format")?,
            read_only: fields.flag("read_only")?,
            included: fields.flag("included")?,
        },
        switched_to: fields.optional_text("switched_to")?,
        switched_at: fields.optional_time("switched_at")?,
    })
}
