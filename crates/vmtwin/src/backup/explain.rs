//! Why a backup failed, where what it failed of says little.

use anyhow::Error;
use vmtwin_hypervisor::undo::GuestRef;

/// What QEMU says when a filter is put on an image that somebody else may write to; it has no other
/// sign than these words.
const SHARED_DISK: &str = "Failed to get shared \"write\" lock";

/// The error of a backup of the guest `name`, with its cause where it is plain now.
pub(super) fn explain(error: Error, name: &str, guest: &GuestRef) -> Error {
    if !guest.process.is_alive() {
        return error.context(format!(
            "{name} ended while it was backed up: it was powered off, killed, saved or moved to \
             another host; nothing of it is kept, so back it up again"
        ));
    }
    let mut causes = error.chain().map(ToString::to_string);
    if causes.any(|cause| cause.contains(SHARED_DISK)) {
        return error.context(format!(
            "a disk of {name} is open elsewhere too, such as in another guest that shares it: what \
             is written there is at no point with {name}; shut that one down, or back {name} up \
             without that disk attached"
        ));
    }
    error
}
