//! Answers: simple and structured replies.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, PoisonError};

use super::handshake::{CONTEXT_ID, Session};
use super::request::{Request, Task};
use super::{ServedExtent, ServedImage};
use crate::{context, wire};

/// Largest chunk of data in a structured reply, bytes: what a worker holds in memory.
const PIECE_BYTES: u64 = 1 << 20;
/// Most reads longer than that which are in memory at once, of all connections.
const MAX_LONG_READS: usize = 4;
/// Most extents in one answer, and most that are looked at for it.
const MAX_EXTENTS: usize = 4096;

/// Answers the requests of a connection, from several threads.
pub(crate) struct Answerer<'a, W> {
    image: &'a dyn ServedImage,
    session: Session,
    output: Mutex<W>,
    gate: &'a Gate,
}

/// Lets few long reads of all connections at once be answered by simple replies, which have to be in
/// memory as a whole.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    inside: Mutex<usize>,
    left: Condvar,
}

impl Gate {
    /// Waits for a place, which is given back with the value.
    fn enter(&self) -> Inside<'_> {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |inside: &mut usize| *inside >= MAX_LONG_READS;
        let inside = self.left.wait_while(inside, full);
        *inside.unwrap_or_else(PoisonError::into_inner) += 1;
        Inside(self)
    }
}

struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.inside.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_one();
    }
}

impl<'a, W: Write> Answerer<'a, W> {
    pub(crate) fn new(
        image: &'a dyn ServedImage,
        session: Session,
        output: W,
        gate: &'a Gate,
    ) -> Self {
        Answerer {
            image,
            session,
            output: Mutex::new(output),
            gate,
        }
    }

    /// Answers one request; `buf` is memory to use again.
    ///
    /// # Errors
    /// Of the socket only.
    pub(crate) fn answer(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        match request.task(&self.session, self.image.size_bytes()) {
            Task::Read if self.session.structured => self.read(request, buf),
            Task::Read => self.simple_read(request, buf),
            Task::BlockStatus => self.block_status(request),
            Task::Nothing => self.plain(request, 0),
            Task::Refuse(code) => self.plain(request, code),
        }
    }

    /// A reply without data.
    fn plain(&self, request: &Request, code: u32) -> io::Result<()> {
        match (self.session.structured, code) {
            (false, _) => self.simple(request, code, &[]),
            (true, 0) => self.chunk(request, true, wire::CHUNK_NONE, &[]),
            (true, _) => {
                let message = wire::error_name(code).as_bytes();
                let mut body = code.to_be_bytes().to_vec();
                body.extend((message.len() as u16).to_be_bytes());
                body.extend(message);
                self.chunk(request, true, wire::CHUNK_ERROR, &[&body])
            }
        }
    }

    fn read(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        let end = request.offset_bytes + u64::from(request.len_bytes);
        let mut at = request.offset_bytes;
        if at == end {
            return self.plain(request, 0);
        }
        while at < end {
            let Ok(extent) = self.extent(at, end) else {
                return self.plain(request, wire::IO_ERROR);
            };
            let offset = at.to_be_bytes();
            if extent.zero {
                at += extent.len_bytes;
                let len = (extent.len_bytes as u32).to_be_bytes();
                self.chunk(
                    request,
                    at == end,
                    wire::CHUNK_OFFSET_HOLE,
                    &[&offset, &len],
                )?;
                continue;
            }
            let len = extent.len_bytes.min(PIECE_BYTES);
            buf.resize(len as usize, 0);
            if self.image.read_at(at, buf).is_err() {
                return self.plain(request, wire::IO_ERROR);
            }
            at += len;
            self.chunk(request, at == end, wire::CHUNK_OFFSET_DATA, &[&offset, buf])?;
        }
        Ok(())
    }

    fn simple_read(&self, request: &Request, buf: &mut Vec<u8>) -> io::Result<()> {
        let long = u64::from(request.len_bytes) > PIECE_BYTES;
        let inside = long.then(|| self.gate.enter());
        buf.resize(request.len_bytes as usize, 0);
        let answered = match self.image.read_at(request.offset_bytes, buf) {
            Ok(()) => self.simple(request, 0, buf),
            Err(_) => self.simple(request, wire::IO_ERROR, &[]),
        };
        buf.truncate(PIECE_BYTES as usize);
        buf.shrink_to(PIECE_BYTES as usize);
        drop(inside);
        answered
    }

    fn block_status(&self, request: &Request) -> io::Result<()> {
        let end = request.offset_bytes + u64::from(request.len_bytes);
        let most = match request.flags & wire::COMMAND_FLAG_REQ_ONE {
            0 => MAX_EXTENTS,
            _ => 1,
        };
        let mut at = request.offset_bytes;
        let mut extents: Vec<ServedExtent> = Vec::new();
        for _ in 0..MAX_EXTENTS {
            if at == end {
                break;
            }
            let Ok(extent) = self.extent(at, end) else {
                return self.plain(request, wire::IO_ERROR);
            };
            at += extent.len_bytes;
            let full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.zero == extent.zero => last.len_bytes += extent.len_bytes,
                _ if full => break,
                _ => extents.push(extent),
            }
        }
        let mut body = CONTEXT_ID.to_be_bytes().to_vec();
        for extent in extents {
            let flags = match extent.zero {
                true => context::HOLE | context::ZERO,
                false => 0,
            };
            body.extend((extent.len_bytes as u32).to_be_bytes());
            body.extend(flags.to_be_bytes());
        }
        self.chunk(request, true, wire::CHUNK_BLOCK_STATUS, &[&body])
    }

    /// The extent at `at`, cut off at `end`; never empty.
    fn extent(&self, at: u64, end: u64) -> io::Result<ServedExtent> {
        let extent = self.image.extent_at(at)?;
        if extent.len_bytes == 0 {
            return Err(io::Error::other("an extent without length"));
        }
        let len_bytes = extent.len_bytes.min(end - at);
        Ok(ServedExtent {
            len_bytes,
            ..extent
        })
    }

    fn simple(&self, request: &Request, code: u32, data: &[u8]) -> io::Result<()> {
        let mut head = wire::SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        head.extend(code.to_be_bytes());
        head.extend(request.cookie.to_be_bytes());
        self.send(&head, &[data])
    }

    fn chunk(&self, request: &Request, last: bool, kind: u16, body: &[&[u8]]) -> io::Result<()> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        let mut head = wire::CHUNK_MAGIC.to_be_bytes().to_vec();
        let flags = if last { wire::CHUNK_FLAG_DONE } else { 0 };
        head.extend(flags.to_be_bytes());
        head.extend(kind.to_be_bytes());
        head.extend(request.cookie.to_be_bytes());
        head.extend((len as u32).to_be_bytes());
        self.send(&head, body)
    }

    /// Writes a whole message; others wait.
    fn send(&self, head: &[u8], body: &[&[u8]]) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(head)?;
        body.iter().try_for_each(|part| output.write_all(part))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn few_long_reads_at_once_whatever_the_connections() {
        let gate = Gate::default();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let _inside = gate.enter();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), MAX_LONG_READS);
        assert_eq!(*gate.inside.lock().unwrap(), 0);
    }
}
