//! Disks of a snapshot behind an NBD server: joins the repository's images to the crate `nbd`.

mod place;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use vmtwin_nbd::{ServedExport, ServedExtent, ServedImage};
use vmtwin_repository::{ExtentKind, Image, SnapshotReader};

pub(crate) use place::Place;

use crate::restore::Inventory;

/// A disk of a snapshot.
struct SnapshotDisk {
    id: String,
    image: Image,
    errors: Arc<AtomicU64>,
}

/// The exports of a snapshot, before they are served.
pub(crate) struct Exports {
    /// Name of the guest.
    pub(crate) vm: String,
    pub(crate) served: Vec<ServedExport>,
    /// How many reads failed.
    pub(crate) errors: Arc<AtomicU64>,
}

impl Exports {
    /// Opens the disks that are wanted, all by default.
    pub(crate) fn open(reader: &SnapshotReader, wanted: Option<&[String]>) -> Result<Exports> {
        let inventory = Inventory::read(reader, wanted)?;
        let vm = inventory.content.vm;
        let errors = Arc::new(AtomicU64::new(0));
        let served = inventory.disks.into_iter().map(|disk| ServedExport {
            name: disk.id.clone(),
            description: format!("{vm} at {}", inventory.content.time)
                .chars()
                .take(200)
                .collect(),
            image: Arc::new(SnapshotDisk {
                id: disk.id,
                image: disk.image,
                errors: Arc::clone(&errors),
            }),
        });
        Ok(Exports {
            served: served.collect(),
            errors,
            vm,
        })
    }
}

impl ServedImage for SnapshotDisk {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<ServedExtent> {
        let extent = self.image.extent_at(offset_bytes);
        Ok(ServedExtent {
            len_bytes: extent.len,
            zero: matches!(extent.kind, ExtentKind::Hole | ExtentKind::Zero),
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read_at(offset_bytes, buf).map_err(|error| {
            self.errors.fetch_add(1, Ordering::Relaxed);
            // The client is told of an I/O error only; the reason is for who runs the server.
            tracing::error!("reading disk {} at {offset_bytes}: {error}", self.id);
            io::Error::other(error)
        })
    }
}
