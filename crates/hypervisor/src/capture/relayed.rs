//! What a QEMU that is reached through somebody else needs: open files, since it may open none of
//! ours. It runs as another user perhaps, confined, in a /dev of its own.

use super::{Capture, CaptureError};
use crate::undo::Undo;

impl Capture<'_> {
    /// Gives QEMU the scratch images of all views.
    pub(super) fn hand_over_scratch(&mut self) -> Result<(), CaptureError> {
        for view in self.views.clone() {
            let undo = Undo::FdSet {
                guest: self.guest.clone(),
                id: view.fd_set,
            };
            self.step(&format!("files {}", view.disk.id), undo, |c| {
                view.hand_over_scratch(&mut c.qmp)
            })?;
        }
        Ok(())
    }
}
