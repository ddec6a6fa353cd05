//! Reading a stream while it comes in: for a twin, which takes memory straight from the guest.

use std::io::{self, Read};
use std::sync::Arc;

use super::state::{Shared, Slot};
use super::{SpoolError, SpoolHandle};

/// The bytes of a stream that still comes in. What was read is forgotten. Dropped before the end,
/// it gives the spool up.
#[derive(Debug)]
pub struct SpoolReader {
    shared: Arc<Shared>,
    next: usize,
    chunk: Arc<Vec<u8>>,
    at: usize,
    ended: bool,
}

impl SpoolReader {
    pub(super) fn new(shared: Arc<Shared>) -> SpoolReader {
        SpoolReader {
            shared,
            next: 0,
            chunk: Arc::default(),
            at: 0,
            ended: false,
        }
    }

    /// A handle for another thread.
    pub fn handle(&self) -> SpoolHandle {
        SpoolHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Makes the next chunk the current one. False at the end of the stream.
    fn advance(&mut self) -> io::Result<bool> {
        let slot = self
            .shared
            .take_chunk(self.next)
            .map_err(io::Error::other)?;
        self.chunk = match slot {
            None => {
                self.ended = true;
                return Ok(false);
            }
            Some(Slot::Memory(chunk)) => chunk,
            Some(Slot::Disk { offset, len }) => Arc::new(self.read_back(offset, len)?),
            Some(Slot::Taken) => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        self.next += 1;
        self.at = 0;
        Ok(true)
    }

    fn read_back(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.shared.file.as_ref();
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut bytes = vec![0; len];
        file.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl Read for SpoolReader {
    /// Waits for bytes. An error is a [`SpoolError`], or the spool's file could not be read.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.ended || !self.advance()? {
                return Ok(0);
            }
        }
        let count = out.len().min(self.chunk.len() - self.at);
        out[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Drop for SpoolReader {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.fail(SpoolError::GivenUp {
                reason: "the reader of the stream ended before the stream".into(),
            });
        }
    }
}
