//! The drain thread: from the socket into memory, waiting for nothing else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::state::Shared;
use super::{CHUNK_BYTES, SpoolError};

/// The longest sleep: a pipe can't be woken by a shutdown.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

enum Wait {
    Readable,
    Nothing,
    Ended,
}

/// Reads `stream` to its end.
pub(super) fn run(shared: &Shared, stream: &Arc<OwnedFd>) {
    let mut last_byte = shared.started();
    while shared.reserve_chunk() {
        let mut chunk = vec![0; CHUNK_BYTES];
        match fill(shared, stream, &mut chunk, &mut last_byte) {
            Ok(CHUNK_BYTES) => shared.push(chunk),
            Ok(len) => {
                chunk.truncate(len);
                return shared.end_of_stream(chunk);
            }
            Err(error) => return shared.fail(error),
        }
    }
}

/// Fills a chunk; less than a chunk is the end of the stream, or of the spool.
fn fill(
    shared: &Shared,
    stream: &OwnedFd,
    chunk: &mut [u8],
    last_byte: &mut Instant,
) -> Result<usize, SpoolError> {
    let mut filled = 0;
    while filled < chunk.len() {
        match wait_readable(shared, stream, *last_byte)? {
            Wait::Readable => {}
            Wait::Nothing => continue,
            Wait::Ended => return Ok(filled),
        }
        match rustix::io::read(stream, &mut chunk[filled..]) {
            Ok(0) => return Ok(filled),
            Ok(count) => {
                filled += count;
                *last_byte = Instant::now();
                shared.add_received(count as u64);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(SpoolError::Read(errno.into())),
        }
    }
    Ok(filled)
}

fn wait_readable(
    shared: &Shared,
    stream: &OwnedFd,
    last_byte: Instant,
) -> Result<Wait, SpoolError> {
    let options = &shared.options;
    let deadline = options.deadline.saturating_sub(shared.started().elapsed());
    if deadline.is_zero() {
        return Err(SpoolError::Deadline {
            after: options.deadline,
        });
    }
    let stall = options.stall.saturating_sub(last_byte.elapsed());
    let wait = timespec(deadline.min(stall).min(LONGEST_WAIT));
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    match poll(&mut fds, Some(&wait)) {
        Ok(0) | Err(Errno::INTR) if shared.ended() => Ok(Wait::Ended),
        Ok(0) if stall.is_zero() => Err(SpoolError::Stalled {
            after: options.stall,
        }),
        Ok(0) | Err(Errno::INTR) => Ok(Wait::Nothing),
        Ok(_) => Ok(Wait::Readable),
        Err(errno) => Err(SpoolError::Read(errno.into())),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
