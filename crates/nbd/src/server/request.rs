//! Requests: read, and judged before anything is done for them.

use std::io::{self, Read};

use super::handshake::Session;
use crate::wire;

/// A request, whose payload was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Read,
    BlockStatus,
    Nothing,
    /// Answer with this error.
    Refuse(u32),
}

impl Request {
    /// Reads the next one; `None` when the client says good-bye.
    ///
    /// # Errors
    /// Of the socket; for what is no request, after which nothing can be trusted.
    pub(crate) fn read(input: &mut impl Read) -> io::Result<Option<Request>> {
        let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut head = [0; 28];
        input.read_exact(&mut head)?;
        let mut head = head.as_slice();
        if u32::from_be_bytes(take(&mut head)) != wire::REQUEST_MAGIC {
            return Err(bad("wrong magic of a request"));
        }
        let request = Request {
            flags: u16::from_be_bytes(take(&mut head)),
            command: u16::from_be_bytes(take(&mut head)),
            cookie: u64::from_be_bytes(take(&mut head)),
            offset_bytes: u64::from_be_bytes(take(&mut head)),
            len_bytes: u32::from_be_bytes(take(&mut head)),
        };
        match request.command {
            wire::COMMAND_DISCONNECT => return Ok(None),
            wire::COMMAND_WRITE if request.len_bytes > wire::MAX_PAYLOAD => {
                return Err(bad("overlong write"));
            }
            wire::COMMAND_WRITE => {
                let len = u64::from(request.len_bytes);
                if io::copy(&mut input.take(len), &mut io::sink())? < len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            _ => {}
        }
        Ok(Some(request))
    }

    /// Judges it against an export of `size_bytes`.
    pub(crate) fn task(&self, session: &Session, size_bytes: u64) -> Task {
        let end = self.offset_bytes.checked_add(u64::from(self.len_bytes));
        let inside = end.is_some_and(|end| end <= size_bytes);
        let readable = self.flags == 0 && self.len_bytes <= wire::MAX_PAYLOAD;
        match self.command {
            wire::COMMAND_READ if inside && readable => Task::Read,
            wire::COMMAND_FLUSH => Task::Nothing,
            wire::COMMAND_WRITE | wire::COMMAND_TRIM | wire::COMMAND_WRITE_ZEROES => {
                Task::Refuse(wire::NOT_PERMITTED)
            }
            wire::COMMAND_BLOCK_STATUS
                if session.allocation
                    && inside
                    && self.len_bytes > 0
                    && self.flags & !wire::COMMAND_FLAG_REQ_ONE == 0 =>
            {
                Task::BlockStatus
            }
            _ => Task::Refuse(wire::INVALID),
        }
    }
}

/// The next bytes of a head that is long enough.
fn take<const N: usize>(head: &mut &[u8]) -> [u8; N] {
    let (first, rest) = head.split_first_chunk().unwrap_or((&[0; N], &[]));
    *head = rest;
    *first
}
