//! Whether the host has memory for a twin.

use super::TwinError;
use crate::process::kib_field_bytes;

/// What a twin's QEMU takes beside the guest's memory, bytes.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Checks that the host can hold a twin of the guest in process `pid` beside it.
///
/// A twin takes what the guest's process holds: pages that are zero or were never touched stay
/// untouched. `spool_bytes` is what the spool may hold meanwhile.
///
/// # Errors
/// [`TwinError::NoRoom`]. A host that does not say is trusted.
pub fn check_room(pid: u32, spool_bytes: u64) -> Result<(), TwinError> {
    match kib_field_bytes(&format!("/proc/{pid}/status"), "VmRSS:") {
        Some(resident) => check_memory(resident.saturating_add(spool_bytes.min(resident))),
        None => Ok(()),
    }
}

/// Checks that the host has `bytes` of memory for a twin to spare.
///
/// # Errors
/// [`TwinError::NoRoom`]. A host that does not say is trusted.
pub fn check_memory(bytes: u64) -> Result<(), TwinError> {
    let Some(available) = kib_field_bytes("/proc/meminfo", "MemAvailable:") else {
        return Ok(());
    };
    let needed = bytes.saturating_add(OVERHEAD_BYTES);
    match needed <= available {
        true => Ok(()),
        false => Err(TwinError::NoRoom {
            needed_mib: needed >> 20,
            available_mib: available >> 20,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_process_fits_and_a_vast_spool_does_not_count_beyond_the_guest() {
        check_room(std::process::id(), u64::MAX).unwrap();
        check_room(u32::MAX, 0).unwrap();
        let error = check_memory(u64::MAX).unwrap_err();
        assert!(matches!(error, TwinError::NoRoom { .. }), "{error}");
    }
}
