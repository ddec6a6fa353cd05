//! Storing a guest's disks as they were at the point: what changed since an earlier snapshot, or all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmtwin_hypervisor::capture::{Capture, CaptureError};
use vmtwin_hypervisor::machine::{Disk, Machine};
use vmtwin_nbd::{Client, Options, context};
use vmtwin_repository::Backup;

use super::Work;
use super::base::Base;
use super::report::DiskReport;
use super::store::{self, Against};
use crate::content::ContentDisk;
use crate::failpoint;
use crate::source::Changes;

/// Longest time for one answer of QEMU's NBD server. A guest's disk may be slow; it is not stuck.
const NBD_TIMEOUT: Duration = Duration::from_secs(120);

/// Where disks go, and what they build on.
pub(super) struct Sink<'a> {
    pub(super) backup: &'a Backup,
    pub(super) base: &'a Base,
}

impl Sink<'_> {
    /// What a disk whose point is behind `client` is stored against, or why all of it is read.
    pub(super) fn against(
        &self,
        capture: &Capture<'_>,
        disk: &Disk,
        client: &Client,
    ) -> (Against, Option<String>) {
        let Some(base) = self.base.disk(&disk.id) else {
            return (Against::default(), Some("nothing is known of it".into()));
        };
        let mut against = Against {
            parent: base.parent.clone(),
            changes: None,
        };
        if base.why_all.is_some() {
            return (against, base.why_all.clone());
        }
        if client.size_bytes() != disk.size_bytes {
            return (Against::default(), Some("its size has just changed".into()));
        }
        let context = capture.dirty_context(&disk.id);
        let Some(context) = context.filter(|context| client.has_context(context)) else {
            return (against, Some("QEMU does not show its bitmap".into()));
        };
        let mut changes = Changes::none(disk.size_bytes);
        let is_dirty = |flags| flags & context::DIRTY != 0;
        if let Err(error) = changes.add_marked(client, &context, is_dirty) {
            return (against, Some(format!("its bitmap cannot be read: {error}")));
        }
        for (offset, length) in &base.twin_writes {
            changes.add(*offset, *length);
        }
        against.changes = Some(changes);
        (against, None)
    }
}

/// Connects to a disk as it was at the point.
pub(super) fn connect_to_point(capture: &Capture<'_>, disk: &Disk) -> Result<Client> {
    let base = std::iter::once(context::BASE_ALLOCATION.to_owned());
    let contexts = base.chain(capture.dirty_context(&disk.id));
    let options = Options {
        request_timeout: NBD_TIMEOUT,
        ..Options::with_contexts(contexts)
    };
    Client::connect_unix(capture.nbd_socket(), &disk.id, &options)
        .with_context(|| format!("cannot read the point-in-time view of disk {}", disk.id))
}

impl Work<'_> {
    /// Stores the disks as they were at the point.
    pub(super) fn store_disks(
        &mut self,
        capture: &Capture<'_>,
        machine: &Machine,
        sink: &Sink<'_>,
    ) -> Result<Vec<ContentDisk>> {
        let begun = Instant::now();
        let mut disks = Vec::new();
        for disk in machine.disks.iter().filter(|d| d.included) {
            failpoint::pass(&format!("read {}", disk.id))?;
            disks.push(self.store_disk(capture, disk, sink)?);
        }
        self.report.seconds.disks = begun.elapsed().as_secs_f64();
        if self.cx.cancel.is_set() {
            return Err(CaptureError::Cancelled.into());
        }
        Ok(disks)
    }

    fn store_disk(
        &mut self,
        capture: &Capture<'_>,
        disk: &Disk,
        sink: &Sink<'_>,
    ) -> Result<ContentDisk> {
        let client = connect_to_point(capture, disk)?;
        let (against, why_all) = sink.against(capture, disk, &client);
        let stored = store::image(self.cx, sink.backup, disk, client, against, self.report)?;
        self.note_reading(&disk.id, why_all);
        Ok(stored)
    }

    /// Notes whether all of a disk was read, and why.
    pub(super) fn note_reading(&mut self, id: &str, why_all: Option<String>) {
        self.report.disks.push(DiskReport {
            id: id.to_owned(),
            read: if why_all.is_some() { "all" } else { "changed" },
            why: why_all,
        });
    }
}
