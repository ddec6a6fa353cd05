//! What a guest wrote since an earlier point, beside the view of this one.

use super::{Capture, CaptureError};
use crate::bitmap;
use crate::qmp::QmpError;
use crate::undo::Undo;

impl Capture<'_> {
    /// Copies the bitmaps, now that the point is there. A bitmap that cannot be copied is not
    /// exported, and the disk is read as a whole.
    pub(super) fn freeze_bitmaps(
        &mut self,
        bitmaps: &[(String, String)],
    ) -> Result<(), CaptureError> {
        self.dirty.clear();
        for view in self.views.clone() {
            let Some((id, name)) = bitmaps.iter().find(|(id, _)| *id == view.disk.id) else {
                continue;
            };
            let undo = Undo::Bitmap {
                guest: self.guest.clone(),
                node: view.disk.node_name.clone(),
                name: view.dirty.clone(),
            };
            let frozen = self.step(&format!("bitmap {id}"), undo, |c| {
                let node = &view.disk.node_name;
                match bitmap::freeze(&mut c.qmp, node, name, &view.dirty) {
                    Err(QmpError::Refused { .. }) => Ok(false),
                    other => Ok(other.map(|()| true)?),
                }
            })?;
            if frozen {
                self.dirty.push(view.disk.id);
            }
        }
        Ok(())
    }

    /// The NBD context in which a disk's export tells what was written since an earlier point,
    /// where [`CaptureOptions::bitmaps`] asked for it and it can be had.
    #[must_use]
    pub fn dirty_context(&self, disk_id: &str) -> Option<String> {
        let view = self.views.iter().find(|view| view.disk.id == disk_id)?;
        let dirty = self.dirty.iter().any(|id| id == disk_id);
        dirty.then(|| format!("qemu:dirty-bitmap:{}", view.dirty))
    }
}
