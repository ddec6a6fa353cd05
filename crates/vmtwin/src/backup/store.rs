//! What every snapshot of a guest is made of: images of disks, the machine, the list, and the row
//! in the catalog.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use vmtwin_catalog::VmId;
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_nbd::{Client, context};
use vmtwin_repository::{Backup, ImageOptions, ParentImage, Snapshot, SnapshotMeta};

use super::{BackupReport, Cx};
use crate::content::{self, Content, ContentDisk};
use crate::db::Db;
use crate::failpoint;
use crate::restore::NbdServer;
use crate::source::{Changes, NbdSource};
use crate::ui::BarProgress;

/// Depth of what lies in an image itself, not below it.
const IN_THE_OVERLAY: u32 = 1;

/// What an image is stored against.
#[derive(Default)]
pub(crate) struct Against {
    /// The disk's image in an earlier snapshot.
    pub(crate) parent: Option<Arc<ParentImage>>,
    /// Where it may differ from that; `None`: anywhere.
    pub(crate) changes: Option<Changes>,
}

/// Stores what an NBD export shows as the image of `disk`.
pub(crate) fn image(
    cx: &Cx<'_>,
    backup: &Backup,
    disk: &Disk,
    client: Client,
    against: Against,
    report: &mut BackupReport,
) -> Result<ContentDisk> {
    let size_bytes = client.size_bytes();
    let progress = BarProgress {
        bar: cx.ui.bar(&format!("disk {}", disk.id), size_bytes),
        cancel: cx.cancel,
    };
    let stats = backup
        .add_image(
            &content::disk_dir(&disk.id),
            &NbdSource::new(client, against.changes),
            &ImageOptions {
                parent: against.parent,
                ..ImageOptions::for_disk(size_bytes)
            },
            &progress,
        )
        .with_context(|| {
            format!(
                "disk {} could not be stored (if reading failed: scratch may be full, or the \
                 guest was powered off)",
                disk.id
            )
        })?;
    progress.bar.finish_and_clear();
    report.count(&stats);
    Ok(ContentDisk {
        id: disk.id.clone(),
        size_bytes,
        format: disk.format.clone(),
        twin_writes: false,
    })
}

/// Stores an image that a twin left as disk `id` of `machine`. `against` is told what the twin wrote.
pub(crate) fn finished(
    cx: &Cx<'_>,
    backup: &Backup,
    machine: &Machine,
    id: &str,
    (path, format): (&Path, &str),
    against: impl FnOnce(&Disk, &Changes) -> Result<Against>,
    report: &mut BackupReport,
) -> Result<ContentDisk> {
    failpoint::pass(&format!("read finished {id}"))?;
    let disk = machine.disks.iter().find(|disk| disk.id == id);
    let disk = disk.with_context(|| format!("no disk {id}"))?;
    let (server, client) = NbdServer::start_reading(path, format)
        .with_context(|| format!("cannot read the finished disk {id}"))?;
    let mut written = Changes::none(client.size_bytes());
    written
        .add_marked(&client, context::ALLOCATION_DEPTH, |depth| {
            depth == IN_THE_OVERLAY
        })
        .context("what the twin wrote is not known")?;
    let mut stored = image(cx, backup, disk, client, against(disk, &written)?, report)?;
    drop(server);
    let list = serde_json::to_vec(&written.stretches())?;
    if list.len() as u64 <= content::MAX_JSON_BYTES {
        backup.add_bytes(&content::twin_writes(id), &list)?;
        stored.twin_writes = true;
    }
    Ok(stored)
}

/// Stores the machine and the list.
pub(crate) fn manifest(backup: &Backup, machine: &Machine, content: &Content) -> Result<()> {
    backup.add_bytes(content::MACHINE_JSON, &serde_json::to_vec_pretty(machine)?)?;
    backup.add_bytes(content::SNAPSHOT_JSON, &serde_json::to_vec_pretty(content)?)?;
    Ok(())
}

/// Stores files beside the disks: where each is, and as what it is stored.
pub(crate) fn files<'a>(
    backup: &Backup,
    files: impl Iterator<Item = (PathBuf, &'a str)>,
) -> Result<()> {
    for (path, stored_as) in files {
        let mut reader = std::fs::File::open(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        backup.add_reader(stored_as, &mut reader)?;
    }
    Ok(())
}

/// What the snapshot object says.
pub(crate) fn meta(content: &Content, time: OffsetDateTime) -> SnapshotMeta {
    let mut tags = vec![
        "vmtwin".into(),
        format!("vm={}", content.vm),
        format!("consistency={}", content.consistency),
    ];
    tags.extend(
        content
            .settled_from
            .iter()
            .map(|id| format!("settled-from={id}")),
    );
    SnapshotMeta {
        time,
        tags,
        paths: vec![format!("/vm/{}", content.vm)],
        ..SnapshotMeta::default()
    }
}

/// Notes a snapshot in the catalog, whose table is a cache of what the repository holds.
pub(crate) fn note(
    db: &Db,
    vm_id: Option<VmId>,
    repository_id: &str,
    snapshot: &Snapshot,
    report: &BackupReport,
) -> Result<()> {
    failpoint::pass("catalog")?;
    let consistency = |text: &str| text.parse::<vmtwin_catalog::Consistency>();
    let row = vmtwin_catalog::Snapshot {
        id: snapshot.id.clone(),
        repository_id: repository_id.to_owned(),
        vm_id,
        vm_name: report.vm.clone(),
        time: snapshot.time,
        consistency: consistency(report.consistency.as_deref().unwrap_or_default())?,
        consistency_asked: consistency(&report.consistency_asked)?,
        bytes_read: report.bytes_read,
        bytes_new: report.bytes_new,
        bytes_stored: report.bytes_stored,
        parent: report.settled_from.clone(),
        state: vmtwin_catalog::SnapshotState::Complete,
        report: serde_json::to_value(report)?,
    };
    db.run(async |c| c.upsert_snapshot(&row).await)?;
    Ok(())
}
