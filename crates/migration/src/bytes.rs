//! Random access to captured bytes, so that a stream may lie in memory, in a file, or be
//! split between both.

use std::{fs::File, io, ops::Deref, os::unix::fs::FileExt, sync::Arc};

/// A random-access source of the bytes of one complete capture.
///
/// Shared by several readers, hence `Sync`; a source does not change once it is indexed.
pub trait Bytes: Sync {
    /// Length of the capture, in bytes.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` from `offset` (bytes).
    ///
    /// # Errors
    /// Whatever the store reports; `UnexpectedEof` if the range passes the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Bytes for [u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl Bytes for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }
}

impl<T: Bytes + ?Sized> Bytes for &T {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
}

impl<T: Bytes + Send + ?Sized> Bytes for Arc<T> {
    fn len_bytes(&self) -> u64 {
        self.deref().len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.deref().read_at(offset, buf)
    }
}

/// A capture in a file. The length is taken once, so that later growth is not seen.
#[derive(Debug)]
pub struct FileBytes {
    file: File,
    len_bytes: u64,
}

impl FileBytes {
    /// Takes `file` as a complete capture.
    ///
    /// # Errors
    /// If the length of the file cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { file, len_bytes })
    }
}

impl Bytes for FileBytes {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
