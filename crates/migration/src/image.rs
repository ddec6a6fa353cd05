//! A RAM block as a flat image: every page at its own offset, whatever the order in which the
//! stream holds them.

use std::io;

use crate::{
    Bytes,
    pages::{PageAt, PageTable},
};

/// A stretch of an image that is either all zeros or has content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length, in bytes; never 0.
    pub len_bytes: u64,
    /// What is in it.
    pub kind: ExtentKind,
}

/// What is in an [`Extent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that must be read.
    Data,
    /// Zeros only.
    Zero,
}

/// A source of the content of one RAM block, to make a stream of.
pub trait RamSource {
    /// Size of the block, in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset` (bytes).
    ///
    /// # Errors
    /// Whatever the source reports; `UnexpectedEof` if the range passes the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The stretch that begins at `offset` (bytes), which is less than the size. A source that
    /// knows nothing of holes says that all the rest is data; content is tested for zeros
    /// anyway.
    ///
    /// # Errors
    /// Whatever the source reports.
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        Ok(Extent {
            len_bytes: self.size_bytes() - offset,
            kind: ExtentKind::Data,
        })
    }
}

impl RamSource for [u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Bytes::read_at(self, offset, buf)
    }
}

impl<T: RamSource + ?Sized> RamSource for &T {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        (**self).extent_at(offset)
    }
}

impl RamSource for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Bytes::read_at(self, offset, buf)
    }
}

/// One RAM block of an indexed stream. Pages that were not sent read as zeros.
#[derive(Clone, Copy)]
pub struct RamImage<'a> {
    source: &'a dyn Bytes,
    table: &'a PageTable,
    size_bytes: u64,
    page_size: u64,
}

impl<'a> RamImage<'a> {
    pub(crate) fn new(
        source: &'a dyn Bytes,
        table: &'a PageTable,
        size_bytes: u64,
        page_size_bytes: u32,
    ) -> Self {
        Self {
            source,
            table,
            size_bytes,
            page_size: u64::from(page_size_bytes),
        }
    }

    /// Size of the image, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The longest stretch from `offset` (bytes) that is all zeros or all pages with content;
    /// its length is 0 only at and past the end.
    #[must_use]
    pub fn extent_at(&self, offset: u64) -> Extent {
        if offset >= self.size_bytes {
            return Extent {
                len_bytes: 0,
                kind: ExtentKind::Zero,
            };
        }
        let pages = self.size_bytes / self.page_size;
        let (zero, end_page) = self.table.run(offset / self.page_size, pages);
        let kind = if zero {
            ExtentKind::Zero
        } else {
            ExtentKind::Data
        };
        Extent {
            len_bytes: end_page * self.page_size - offset,
            kind,
        }
    }

    /// Fills `buf` from `offset` (bytes), gathering the pages.
    ///
    /// # Errors
    /// Whatever the source of the stream reports; `UnexpectedEof` if the range passes the end.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= self.size_bytes);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut offset = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = offset % self.page_size;
            let len = (self.page_size - within).min(rest.len() as u64);
            let (piece, after) = rest.split_at_mut(len as usize);
            self.read_in_page(offset / self.page_size, within, piece)?;
            offset += len;
            rest = after;
        }
        Ok(())
    }

    fn read_in_page(&self, page_no: u64, within: u64, piece: &mut [u8]) -> io::Result<()> {
        match self.table.get(page_no) {
            PageAt::Absent | PageAt::Zero => piece.fill(0),
            PageAt::Fill(byte) => piece.fill(byte),
            PageAt::At(at) => self.source.read_at(at + within, piece)?,
        }
        Ok(())
    }
}

impl RamSource for RamImage<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Self::read_at(self, offset, buf)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        Ok(Self::extent_at(self, offset))
    }
}
