//! A file or block device as source or target of an image; its holes are never read.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom as RawSeek;
use rustix::io::Errno;

use crate::image_source::{Extent, ExtentKind, ImageSink, ImageSource};

/// An open file whose holes the file system knows.
#[derive(Debug)]
pub struct SparseFile {
    file: File,
    size_bytes: u64,
}

impl SparseFile {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(File::open(path)?)
    }

    /// Makes a new file of a length, all holes.
    ///
    /// # Errors
    /// When it exists or cannot be made.
    pub fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(size_bytes)?;
        Ok(Self { file, size_bytes })
    }

    /// Takes an open file or block device.
    ///
    /// # Errors
    /// When its length cannot be told.
    pub fn new(mut file: File) -> io::Result<Self> {
        // The end of a block device is only told by seeking.
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size_bytes })
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When it is not.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl ImageSource for SparseFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn extent_at(&self, offset_bytes: u64) -> io::Result<Extent> {
        let to_end = self.size_bytes.saturating_sub(offset_bytes).max(1);
        let data = match rustix::fs::seek(&self.file, RawSeek::Data(offset_bytes)) {
            Ok(at) => at,
            Err(Errno::NXIO) => offset_bytes + to_end,
            // A file system or device that knows no holes.
            Err(Errno::INVAL) => offset_bytes,
            Err(error) => return Err(error.into()),
        };
        if data > offset_bytes {
            return Ok(Extent {
                kind: ExtentKind::Hole,
                len: data - offset_bytes,
            });
        }
        let end = match rustix::fs::seek(&self.file, RawSeek::Hole(offset_bytes)) {
            Ok(at) if at > offset_bytes => at,
            Ok(_) | Err(Errno::INVAL | Errno::NXIO) => offset_bytes + to_end,
            Err(error) => return Err(error.into()),
        };
        Ok(Extent {
            kind: ExtentKind::Data,
            len: end - offset_bytes,
        })
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset_bytes)
    }
}

impl ImageSink for SparseFile {
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset_bytes)
    }
}
