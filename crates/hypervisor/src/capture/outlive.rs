//! A point that outlives its guest: what a standby twin takes over when the guest has failed.

use std::path::{Path, PathBuf};

use super::disks::{self, View};
use super::storage::Storage;
use super::{Capture, CaptureError};
use crate::machine::Disk;
use crate::undo::Undo;

/// What is left of a disk's point when its guest is gone.
#[derive(Debug, Clone)]
pub struct PointImage {
    /// The guest's disk; its image holds everything that was not written since.
    pub disk: Disk,
    /// Image (qcow2) of what was written since, as it was before.
    pub scratch: PathBuf,
}

impl Capture<'_> {
    pub(super) fn start_storage(
        &mut self,
        dir: &Path,
        socket: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<(), CaptureError> {
        let undo = Undo::Process {
            argument: socket.to_owned(),
        };
        self.step("storage", undo, |c| {
            c.storage = Some(Storage::start(dir, &c.views)?);
            owner.map_or(Ok(()), |owner| disks::give_to(socket, owner))
        })
    }

    /// The guest's process is gone, and the point outlived it: ends the storage daemon and keeps
    /// its scratch images, each of which is the point when it lies over the guest's disk.
    ///
    /// # Errors
    /// [`CaptureError::PointLost`]; the journal could not be written.
    pub fn outlive(mut self) -> Result<Vec<PointImage>, CaptureError> {
        let Some(storage) = self.storage.take() else {
            let reason = "its old data was in the guest's own process".to_owned();
            return Err(CaptureError::PointLost { reason });
        };
        storage.finish()?;
        // Whatever was done to the guest went with it; the files are somebody else's from now on.
        while let Some((token, undo)) = self.undos.pop() {
            let step = undo.describe();
            let noted = self.journal.undone(token);
            noted.map_err(|source| CaptureError::Journal { step, source })?;
        }
        let image = |view: &View| PointImage {
            disk: view.disk.clone(),
            scratch: view.scratch_path.clone(),
        };
        Ok(self.views.iter().map(image).collect())
    }
}
