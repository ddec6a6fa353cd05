//! Makes a stream again from head, RAM and tail, for QEMU to load.
//!
//! Every page of every block is sent, zero pages too. A fresh QEMU's memory is zero, but ROM
//! blocks are already filled, a RAM block may be backed by a file with content, and firmware
//! may have left something: only a page that is sent is certain. A zero page costs 9 bytes,
//! and the receiver does not populate memory for it that is zero already. Pages that the
//! original left out (ballooned, hinted as free, unplugged) are sent as zeros as well: their
//! content does not matter to the guest.

use std::io::Write;

use crate::{
    ExtentKind, Layout, Limits, RamBlock, RamSource, RebuildError, cursor::Cursor, head::read_head,
    layout::LAYOUT_FORMAT, tail::check_tail, wire,
};

/// Bytes read from a source at once.
const READ_BYTES: u64 = 1 << 20;

/// A section is ended, and handed to the receiver, when it has this many bytes. QEMU sends
/// sections of any length; this one bounds our memory.
const SECTION_BYTES: usize = 1 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Length of the stream, in bytes.
    pub stream_bytes: u64,
    /// Number of pages sent with content.
    pub data_pages: u64,
    /// Number of pages sent as zeros.
    pub zero_pages: u64,
}

/// Writes a whole stream: `sources` has one source for each block of `layout`, in order.
///
/// # Errors
/// If head, layout, sources and tail do not fit together, or one of the ends fails.
pub fn rebuild(
    head: &[u8],
    layout: &Layout,
    sources: &[&dyn RamSource],
    tail: &[u8],
    out: &mut dyn Write,
) -> Result<Rebuilt, RebuildError> {
    let mut writer = StreamWriter::new(head, layout, out)?;
    for (number, block) in layout.blocks.iter().enumerate() {
        let source = sources.get(number).copied();
        let actual = source.map_or(0, RamSource::size_bytes);
        match source {
            Some(source) if actual == block.size_bytes => writer.block(number, source)?,
            _ if block.size_bytes == 0 => {}
            _ => {
                let (id, expected) = (block.id.clone(), block.size_bytes);
                return Err(RebuildError::SourceSize {
                    id,
                    expected,
                    actual,
                });
            }
        }
    }
    writer.finish(tail)
}

/// Writes a stream piece by piece: pages in any order, then the tail. Use [`rebuild`] unless
/// pages come from somewhere that pushes them.
pub struct StreamWriter<'a> {
    out: &'a mut dyn Write,
    layout: &'a Layout,
    page_size: usize,
    /// The section in the making; empty between sections.
    section: Vec<u8>,
    /// Block of the page before in this section.
    last: Option<usize>,
    done: Rebuilt,
}

impl<'a> StreamWriter<'a> {
    /// Writes the head.
    ///
    /// # Errors
    /// If the head is not the one that the layout was made of, or `out` fails.
    pub fn new(
        head: &[u8],
        layout: &'a Layout,
        out: &'a mut dyn Write,
    ) -> Result<Self, RebuildError> {
        check_head(head, layout)?;
        out.write_all(head).map_err(RebuildError::Write)?;
        Ok(Self {
            out,
            layout,
            page_size: layout.page_size_bytes as usize,
            section: Vec::with_capacity(SECTION_BYTES + SECTION_BYTES / 8),
            last: None,
            done: Rebuilt {
                stream_bytes: head.len() as u64,
                ..Rebuilt::default()
            },
        })
    }

    /// Writes all pages of the block number `block`.
    ///
    /// # Errors
    /// If there is no such block, or `source` or `out` fails.
    pub fn block(&mut self, block: usize, source: &dyn RamSource) -> Result<(), RebuildError> {
        let size_bytes = self.known(block, 0, 0)?.size_bytes;
        let mut buffer = vec![0; READ_BYTES.min(size_bytes) as usize];
        let mut offset = 0;
        while offset < size_bytes {
            let extent = source.extent_at(offset);
            let extent = extent.map_err(|source| self.read_error(block, offset, source))?;
            let pages_end = self
                .whole_pages(offset.saturating_add(extent.len_bytes))
                .min(size_bytes);
            if extent.kind == ExtentKind::Zero && pages_end > offset {
                self.zeros(block, offset, pages_end - offset)?;
                offset = pages_end;
                continue;
            }
            // A stretch that ends inside a page is read to the end of that page.
            let end = pages_end
                .max(offset + self.page_size as u64)
                .min(offset + READ_BYTES);
            let piece = &mut buffer[..(end - offset) as usize];
            let read = source.read_at(offset, piece);
            read.map_err(|source| self.read_error(block, offset, source))?;
            self.pages(block, offset, piece)?;
            offset = end;
        }
        Ok(())
    }

    /// Writes pages with the content `bytes`, which begin at `offset` (bytes) of a block.
    ///
    /// # Errors
    /// If these are not whole pages within the block, or `out` fails.
    pub fn pages(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<(), RebuildError> {
        self.known(block, offset, bytes.len() as u64)?;
        let mut address = offset;
        for page in bytes.chunks_exact(self.page_size) {
            if is_zero(page) {
                self.zero_page(block, address)?;
            } else {
                self.page_header(block, address, wire::RAM_PAGE)?;
                self.section.extend_from_slice(page);
                self.done.data_pages += 1;
            }
            address += self.page_size as u64;
        }
        Ok(())
    }

    /// Writes zero pages for `len_bytes` from `offset` (bytes) of a block.
    ///
    /// # Errors
    /// If these are not whole pages within the block, or `out` fails.
    pub fn zeros(&mut self, block: usize, offset: u64, len_bytes: u64) -> Result<(), RebuildError> {
        self.known(block, offset, len_bytes)?;
        for address in (offset..offset + len_bytes).step_by(self.page_size) {
            self.zero_page(block, address)?;
        }
        Ok(())
    }

    /// Ends RAM and writes the tail.
    ///
    /// # Errors
    /// If the tail is not the end of a stream, or `out` fails.
    pub fn finish(mut self, tail: &[u8]) -> Result<Rebuilt, RebuildError> {
        check_tail(&tail, 0..tail.len() as u64, self.layout.footers).map_err(RebuildError::Tail)?;
        self.end_section()?;
        if self.layout.switchover_start {
            let [high, low] = wire::COMMAND_SWITCHOVER_START.to_be_bytes();
            self.write(&[wire::SECTION_COMMAND, high, low, 0, 0])?;
        }
        if self.layout.end_section {
            self.begin_section(wire::SECTION_END);
            self.end_section()?;
        }
        self.write(tail)?;
        self.out.flush().map_err(RebuildError::Write)?;
        Ok(self.done)
    }

    fn zero_page(&mut self, block: usize, address: u64) -> Result<(), RebuildError> {
        self.page_header(block, address, wire::RAM_ZERO)?;
        self.section.push(0);
        self.done.zero_pages += 1;
        Ok(())
    }

    fn page_header(&mut self, block: usize, address: u64, kind: u64) -> Result<(), RebuildError> {
        if self.section.len() >= SECTION_BYTES {
            self.end_section()?;
        }
        if self.section.is_empty() {
            self.begin_section(wire::SECTION_PART);
        }
        let same = self.last == Some(block);
        let flags = if same {
            kind | wire::RAM_CONTINUE
        } else {
            kind
        };
        self.section
            .extend_from_slice(&(address | flags).to_be_bytes());
        if !same {
            let id = self.layout.blocks[block].id.as_bytes();
            self.section.push(id.len() as u8);
            self.section.extend_from_slice(id);
            self.last = Some(block);
        }
        Ok(())
    }

    fn begin_section(&mut self, kind: u8) {
        self.section.push(kind);
        self.section
            .extend_from_slice(&self.layout.section_id.to_be_bytes());
        self.last = None;
    }

    fn end_section(&mut self) -> Result<(), RebuildError> {
        if self.section.is_empty() {
            return Ok(());
        }
        self.section.extend_from_slice(&wire::RAM_EOS.to_be_bytes());
        if self.layout.footers {
            self.section.push(wire::SECTION_FOOTER);
            self.section
                .extend_from_slice(&self.layout.section_id.to_be_bytes());
        }
        let section = std::mem::take(&mut self.section);
        self.write(&section)?;
        self.section = section;
        self.section.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.done.stream_bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(RebuildError::Write)
    }

    /// The block of this number, if the range is whole pages in it.
    fn known(&self, number: usize, offset: u64, len: u64) -> Result<&'a RamBlock, RebuildError> {
        let found = self.layout.blocks.get(number);
        let page_mask = self.page_size as u64 - 1;
        let whole = (offset | len) & page_mask == 0;
        match found {
            Some(block)
                if whole
                    && offset
                        .checked_add(len)
                        .is_some_and(|e| e <= block.size_bytes) =>
            {
                Ok(block)
            }
            _ => {
                let id = found.map_or_else(|| number.to_string(), |block| block.id.clone());
                Err(RebuildError::Range {
                    id,
                    offset,
                    len_bytes: len,
                })
            }
        }
    }

    fn whole_pages(&self, offset: u64) -> u64 {
        offset & !(self.page_size as u64 - 1)
    }

    fn read_error(&self, block: usize, offset: u64, source: std::io::Error) -> RebuildError {
        RebuildError::Read {
            id: self.layout.blocks[block].id.clone(),
            offset,
            source,
        }
    }
}

/// The head is parsed again: it must be whole and say what the layout says.
fn check_head(head: &[u8], layout: &Layout) -> Result<(), RebuildError> {
    if layout.format != LAYOUT_FORMAT {
        let (found, known) = (layout.format, LAYOUT_FORMAT);
        return Err(RebuildError::LayoutFormat { found, known });
    }
    let mut limits = Limits::default()
        .with_max_ram_bytes(u64::MAX)
        .with_page_size_bytes(layout.page_size_bytes);
    limits.max_head_bytes = u64::MAX;
    let mut cursor = Cursor::new(&head);
    let mut found = read_head(&mut cursor, &limits).map_err(RebuildError::Head)?;
    if cursor.offset() != head.len() as u64 {
        return Err(RebuildError::LayoutMismatch {
            what: "bytes follow the head",
        });
    }
    found.switchover_start = layout.switchover_start;
    found.end_section = layout.end_section;
    if found != *layout {
        return Err(RebuildError::LayoutMismatch {
            what: "sections or RAM blocks differ",
        });
    }
    Ok(())
}

/// Whether all bytes are zero. Whole rows are joined first, which the compiler does in vectors.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(64)
        .all(|row| row.iter().fold(0, |all, byte| all | byte) == 0)
}
