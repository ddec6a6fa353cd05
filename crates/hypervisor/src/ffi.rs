//! The two system calls that no crate wraps: advice to another process, and a scan of its page
//! tables. All `unsafe` of this crate is in this file; outside it the types are safe.
//!
//! Neither call reads or writes memory of ours beyond the structures passed, and neither changes
//! what the other process sees in its memory: the addresses are data to the kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Collapse a range into huge pages, now (Linux 6.1).
const MADV_COLLAPSE: libc::c_int = 25;

/// Page is mapped.
pub(crate) const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Page is the shared zero page.
pub(crate) const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Page is part of a huge page.
pub(crate) const PAGE_IS_HUGE: u64 = 1 << 6;

/// `_IOWR('f', 16, struct pm_scan_arg)` of `linux/fs.h` (Linux 6.7).
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// A run of pages of one category (`struct page_region`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PageRegion {
    /// First address.
    pub(crate) start: u64,
    /// End address, exclusive.
    pub(crate) end: u64,
    /// `PAGE_IS_*` bits.
    pub(crate) categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Finds mapped small pages in `start..end` of the process behind `pagemap`, fills `regions` and
/// returns how many and where the walk ended.
///
/// # Errors
/// `ENOTTY` on kernels without the call.
pub(crate) fn scan_small_pages(
    pagemap: &File,
    start: u64,
    end: u64,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arg = ScanArg {
        size: std::mem::size_of::<ScanArg>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: PAGE_IS_HUGE,
        category_mask: PAGE_IS_PRESENT | PAGE_IS_HUGE,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
        ..ScanArg::default()
    };
    // SAFETY: `arg` has the layout and size the kernel expects, lives through the call, and its
    // `vec` points to `vec_len` writable entries of `struct page_region` that we borrow mutably.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    match usize::try_from(found) {
        Ok(found) => Ok((found.min(regions.len()), arg.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Asks the kernel to back `start..start + len` of another process by huge pages.
///
/// # Errors
/// The range has nothing to collapse (`EINVAL`), memory is short, or we may not.
pub(crate) fn collapse(pidfd: BorrowedFd<'_>, start: u64, len: usize) -> io::Result<()> {
    let range = libc::iovec {
        iov_base: start as *mut libc::c_void,
        iov_len: len,
    };
    // SAFETY: the kernel reads one `iovec` that lives through the call; the address inside it
    // belongs to the other process and is never dereferenced here.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const range,
            1usize,
            MADV_COLLAPSE,
            0u32,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
