//! A sequential reader with a large buffer over random-access bytes, which can skip without
//! reading and always knows its offset for messages.

use crate::{Bytes, Error};

/// Bytes read at once: large enough that the cost of a call vanishes.
const BUFFER_BYTES: usize = 1 << 20;

/// Reads forward; every error names the offset at which it happened.
pub(crate) struct Cursor<'a> {
    source: &'a dyn Bytes,
    len_bytes: u64,
    buffer: Vec<u8>,
    buffer_offset: u64,
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(source: &'a dyn Bytes) -> Self {
        let len_bytes = source.len_bytes();
        Self {
            source,
            len_bytes,
            buffer: Vec::new(),
            buffer_offset: 0,
            position: 0,
        }
    }

    /// Where the next byte is read, in bytes from the start.
    pub(crate) fn offset(&self) -> u64 {
        self.buffer_offset + self.position as u64
    }

    /// Reads `N` bytes; `what` names them if they are missing.
    #[inline]
    pub(crate) fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        if let Some(bytes) = self
            .buffer
            .get(self.position..)
            .and_then(|rest| rest.first_chunk())
        {
            let bytes = *bytes;
            self.position += N;
            return Ok(bytes);
        }
        self.fill(N as u64, what)?;
        self.take(what)
    }

    /// Reads one byte.
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Error> {
        Ok(u8::from_be_bytes(self.take(what)?))
    }

    /// Reads a big-endian number of two bytes.
    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.take(what)?))
    }

    /// Reads a big-endian number of four bytes.
    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.take(what)?))
    }

    /// Reads a big-endian number of eight bytes.
    #[inline]
    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_be_bytes(self.take(what)?))
    }

    /// Reads a string that is preceded by its length in one byte.
    pub(crate) fn short_string(&mut self, what: &'static str) -> Result<&[u8], Error> {
        let len = usize::from(self.u8(what)?);
        if self.buffer.len() - self.position < len {
            self.fill(len as u64, what)?;
        }
        let start = self.position;
        self.position += len;
        Ok(&self.buffer[start..start + len])
    }

    /// The next byte, which stays to be read; `None` at the end.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>, Error> {
        if self.offset() == self.len_bytes {
            return Ok(None);
        }
        if self.position == self.buffer.len() {
            self.fill(1, "a byte")?;
        }
        Ok(self.buffer.get(self.position).copied())
    }

    /// Passes over `len` bytes, which must exist, without reading those outside the buffer.
    #[inline]
    pub(crate) fn skip(&mut self, len: u64, what: &'static str) -> Result<(), Error> {
        let buffered = (self.buffer.len() - self.position) as u64;
        if len <= buffered {
            self.position += len as usize;
            return Ok(());
        }
        let offset = self.offset();
        if len > self.len_bytes - offset {
            return Err(Error::Truncated { what, offset });
        }
        self.buffer.clear();
        self.position = 0;
        self.buffer_offset = offset + len;
        Ok(())
    }

    /// Refills the buffer from the current offset, with at least `need` bytes (at most
    /// [`BUFFER_BYTES`]).
    fn fill(&mut self, need: u64, what: &'static str) -> Result<(), Error> {
        let offset = self.offset();
        let left = self.len_bytes - offset;
        if left < need {
            return Err(Error::Truncated { what, offset });
        }
        let len = left.min(BUFFER_BYTES as u64) as usize;
        self.buffer.resize(len, 0);
        self.buffer_offset = offset;
        self.position = 0;
        let read = self.source.read_at(offset, &mut self.buffer);
        read.map_err(|source| {
            self.buffer.clear();
            Error::Read { offset, source }
        })
    }
}
