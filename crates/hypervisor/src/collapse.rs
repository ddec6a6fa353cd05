//! Before the pause: put guest memory back on huge pages, so that the pause does not grow.
//!
//! QEMU's background snapshot write-protects guest memory inside the pause, at some 25 ns per
//! page-table entry (measured). Memory on huge pages has 512 times fewer. A snapshot itself splits
//! them, one page at a time, so the *second* snapshot of an 8 GiB guest would pause for 50 ms
//! where the first took 3. `process_madvise(MADV_COLLAPSE)` undoes the split from outside, while
//! the guest runs.
//!
//! Where a range holds data, collapsing it costs at most the rest of its 2 MiB. A range of nothing
//! but zero pages would take memory that the guest never used: done only while the host has plenty.
//! This is advice to the kernel: where it can't be done (old kernel, no privilege), the capture
//! goes on, with a longer pause.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::ffi::{self, PAGE_IS_PFNZERO, PageRegion};
use crate::process::kib_field_bytes;

/// Size of a huge page on x86-64, bytes.
const HUGE_BYTES: u64 = 2 << 20;
/// Entries of this many small pages may stay: about 0.8 ms of pause.
const TOLERATED_PAGES: u64 = 32 * 1024;
/// Mappings smaller than this are not guest memory worth the work, bytes.
const MIN_MAPPING_BYTES: u64 = 32 << 20;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct CollapseReport {
    /// Bytes put on huge pages.
    pub collapsed_bytes: u64,
    /// Small pages still mapped after it.
    pub small_pages_left: u64,
    /// Time taken, milliseconds.
    pub elapsed_ms: u64,
}

/// A 2 MiB range with small pages in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    /// Mapped small pages with data.
    data: u64,
    /// Mapped zero pages.
    zero: u64,
}

/// Collapses guest memory of process `pid` until few small pages are left, the time is up, or
/// `cancelled` says so.
pub fn collapse_guest_memory(
    pid: u32,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> CollapseReport {
    let begun = Instant::now();
    let mut report = CollapseReport::default();
    let Some(mut ranges) = fragmented_ranges(pid) else {
        return report;
    };
    report.small_pages_left = ranges.iter().map(|r| r.data + r.zero).sum();
    let zero_ranges = ranges.iter().filter(|r| r.data == 0).count() as u64;
    if !memory_is_plenty(zero_ranges * HUGE_BYTES) {
        ranges.retain(|r| r.data > 0);
    }
    // Ranges with data first: they are what the guest uses, and cost least.
    ranges.sort_by_key(|r| (r.data == 0, std::cmp::Reverse(r.data + r.zero)));
    let Some(pidfd) = pidfd(pid) else {
        return report;
    };
    for range in ranges {
        let done = report.small_pages_left <= TOLERATED_PAGES;
        if done || begun.elapsed() > limit || cancelled() {
            break;
        }
        let outcome = ffi::collapse(
            std::os::fd::AsFd::as_fd(&pidfd),
            range.start,
            HUGE_BYTES as usize,
        );
        if outcome.is_ok() {
            report.collapsed_bytes += HUGE_BYTES;
            report.small_pages_left -= range.data + range.zero;
        }
    }
    report.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

fn pidfd(pid: u32) -> Option<std::os::fd::OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

fn fragmented_ranges(pid: u32) -> Option<Vec<Range>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut ranges = Vec::new();
    for (start, end) in maps.lines().filter_map(anonymous_mapping) {
        scan(&pagemap, start, end, &mut ranges).ok()?;
    }
    Some(ranges)
}

/// The bounds of a large private anonymous mapping, in whole huge pages.
fn anonymous_mapping(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let private_anonymous = fields.next()? == "rw-p" && fields.nth(2)? == "0";
    let named = fields.next().is_some();
    let aligned = (
        start.next_multiple_of(HUGE_BYTES),
        end / HUGE_BYTES * HUGE_BYTES,
    );
    let large = end.checked_sub(start)? >= MIN_MAPPING_BYTES;
    (private_anonymous && !named && large && aligned.0 < aligned.1).then_some(aligned)
}

fn scan(pagemap: &File, start: u64, end: u64, out: &mut Vec<Range>) -> std::io::Result<()> {
    let mut regions = vec![PageRegion::default(); 4096];
    let mut at = start;
    while at < end {
        let (found, walked_to) = ffi::scan_small_pages(pagemap, at, end, &mut regions)?;
        for region in &regions[..found] {
            add_region(out, *region);
        }
        if walked_to <= at {
            break;
        }
        at = walked_to;
    }
    Ok(())
}

/// Adds a run of small pages to the 2 MiB ranges that it touches.
fn add_region(out: &mut Vec<Range>, region: PageRegion) {
    let mut at = region.start;
    while at < region.end {
        let base = at / HUGE_BYTES * HUGE_BYTES;
        let stop = region.end.min(base + HUGE_BYTES);
        if out.last().is_none_or(|r| r.start != base) {
            out.push(Range {
                start: base,
                data: 0,
                zero: 0,
            });
        }
        if let Some(range) = out.last_mut() {
            let pages = (stop - at) / 4096;
            if region.categories & PAGE_IS_PFNZERO != 0 {
                range.zero += pages;
            } else {
                range.data += pages;
            }
        }
        at = stop;
    }
}

/// Whether `wanted` bytes leave a quarter of the host's memory free.
fn memory_is_plenty(wanted: u64) -> bool {
    let field = |name| kib_field_bytes("/proc/meminfo", name);
    match (field("MemAvailable:"), field("MemTotal:")) {
        (Some(available), Some(total)) => available.saturating_sub(wanted) >= total / 4,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_private_anonymous_mappings_count() {
        let line = "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 ";
        assert_eq!(
            anonymous_mapping(line),
            Some((0x7f00_0000_0000, 0x7f00_1000_0000))
        );
        assert_eq!(
            anonymous_mapping("7f0000000000-7f0000001000 rw-p 00000000 00:00 0"),
            None
        );
        assert_eq!(
            anonymous_mapping("7f0000000000-7f0010000000 rwxp 00000000 00:00 0"),
            None
        );
        let heap = "7f0000000000-7f0010000000 rw-p 00000000 00:00 0  [heap]";
        assert_eq!(anonymous_mapping(heap), None);
        assert_eq!(anonymous_mapping("rubbish"), None);
    }

    #[test]
    fn regions_fall_into_their_ranges() {
        let mut out = Vec::new();
        let data = |start, end| PageRegion {
            start,
            end,
            categories: 0,
        };
        add_region(&mut out, data(HUGE_BYTES - 4096, HUGE_BYTES + 8192));
        add_region(
            &mut out,
            PageRegion {
                start: HUGE_BYTES + 8192,
                end: HUGE_BYTES + 12288,
                categories: PAGE_IS_PFNZERO,
            },
        );
        assert_eq!(
            out,
            [
                Range {
                    start: 0,
                    data: 1,
                    zero: 0
                },
                Range {
                    start: HUGE_BYTES,
                    data: 2,
                    zero: 1
                }
            ]
        );
    }
}
