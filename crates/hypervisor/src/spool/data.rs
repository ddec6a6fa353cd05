//! The whole stream, to be read at any offset by any thread.

use std::io;
use std::sync::Arc;

use super::CHUNK_BYTES;
use super::file::SpillFile;
use super::state::Slot;

/// The bytes of a stream that ended. Dropping it frees memory and disk.
#[derive(Debug)]
pub struct SpoolData {
    slots: Vec<Slot>,
    len_bytes: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    file: Option<Arc<dyn SpillFile>>,
}

impl SpoolData {
    pub(super) fn new(
        slots: Vec<Slot>,
        len_bytes: u64,
        memory_bytes: u64,
        disk_bytes: u64,
        file: Option<Arc<dyn SpillFile>>,
    ) -> SpoolData {
        SpoolData {
            slots,
            len_bytes,
            memory_bytes,
            disk_bytes,
            file,
        }
    }

    /// Length of the stream.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Memory held, in whole chunks.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Disk held.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Fills `out` from `offset`; an error of kind `UnexpectedEof` if the stream is shorter.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let within = (at % CHUNK_BYTES as u64) as usize;
            let count = rest.len().min(CHUNK_BYTES - within);
            let (part, after) = rest.split_at_mut(count);
            self.read_chunk(at / CHUNK_BYTES as u64, within, part)?;
            at += count as u64;
            rest = after;
        }
        Ok(())
    }

    fn read_chunk(&self, index: u64, within: usize, out: &mut [u8]) -> io::Result<()> {
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let index = usize::try_from(index).map_err(|_| eof())?;
        match self.slots.get(index).ok_or_else(eof)? {
            Slot::Memory(chunk) => {
                let bytes = chunk.get(within..within + out.len()).ok_or_else(eof)?;
                out.copy_from_slice(bytes);
                Ok(())
            }
            Slot::Disk { offset, .. } => match &self.file {
                Some(file) => file.read_at(offset + within as u64, out),
                None => Err(eof()),
            },
            Slot::Taken => Err(eof()),
        }
    }
}
