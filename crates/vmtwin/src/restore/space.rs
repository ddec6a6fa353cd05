//! Room for what a running guest will be given.
//!
//! A whole restore that runs out of space fails and is taken back. In an instant one the guest runs by
//! then, and would stop at its next write.

use std::path::Path;

use rustix::fs::statvfs;
use vmtwin_repository::{ExtentKind, Image};

use super::error::RestoreError;
use super::inventory::Inventory;

/// Refuses where the disks, without what is zero, do not fit.
pub(super) fn check(inventory: &Inventory, dir: &Path) -> Result<(), RestoreError> {
    let needed: u64 = inventory.disks.iter().map(|d| data_bytes(&d.image)).sum();
    let found = statvfs(dir).map_err(|e| RestoreError::file("look at", dir)(e.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    match needed > free {
        true => Err(RestoreError::NoSpace {
            dir: dir.to_owned(),
            needed,
            free,
        }),
        false => Ok(()),
    }
}

/// What an image takes where zeros are left out.
fn data_bytes(image: &Image) -> u64 {
    let (mut at, mut data) = (0, 0);
    while at < image.size_bytes() {
        let extent = image.extent_at(at);
        if extent.kind == ExtentKind::Data {
            data += extent.len;
        }
        at += extent.len.max(1);
    }
    data
}
