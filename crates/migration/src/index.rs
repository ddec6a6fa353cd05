//! One pass over a stream: what is where.

use std::ops::Range;

use crate::{
    Bytes, Error, Layout, Limits, RamBlock, RamImage,
    cursor::Cursor,
    head::{read_footer, read_head},
    pages::{PageAt, PageTable},
    tail::check_tail,
    wire,
};

/// Where head, RAM pages and tail of one stream are. It holds no bytes of the stream.
#[derive(Debug, Clone)]
pub struct StreamIndex {
    layout: Layout,
    head: Range<u64>,
    tail: Range<u64>,
    tables: Vec<PageTable>,
    counts: PageCounts,
}

#[derive(Debug, Clone, Copy, Default)]
struct PageCounts {
    data: u64,
    zero: u64,
}

impl StreamIndex {
    /// Reads the whole of a complete capture once.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for streams of a kind that cannot be taken apart, others if the
    /// stream is damaged, cut off, over a limit, or cannot be read.
    pub fn parse(source: &dyn Bytes, limits: &Limits) -> Result<Self, Error> {
        let mut cursor = Cursor::new(source);
        let layout = read_head(&mut cursor, limits)?;
        let head = 0..cursor.offset();
        let tables = vec![PageTable::default(); layout.blocks.len()];
        let mut scan = Scan {
            cursor,
            layout,
            tables,
            counts: PageCounts::default(),
            last: None,
        };
        let tail_start = scan.sections()?;
        let tail = tail_start..source.len_bytes();
        let tail_bytes = tail.end - tail.start;
        if tail_bytes > limits.max_tail_bytes {
            let limit = limits.max_tail_bytes;
            return Err(Error::TooLarge {
                what: "devices' states in bytes",
                actual: tail_bytes,
                limit,
            });
        }
        check_tail(source, tail.clone(), scan.layout.footers)?;
        let Scan {
            layout,
            tables,
            counts,
            ..
        } = scan;
        Ok(Self {
            layout,
            head,
            tail,
            tables,
            counts,
        })
    }

    /// What is needed, beside head, RAM and tail, to make the stream again.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All RAM blocks, in the order of the stream.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.layout.blocks
    }

    /// Size of a page, in bytes.
    #[must_use]
    pub fn page_size_bytes(&self) -> u32 {
        self.layout.page_size_bytes
    }

    /// Where the head is: everything up to and including the setup of RAM. In bytes.
    #[must_use]
    pub fn head(&self) -> Range<u64> {
        self.head.clone()
    }

    /// Where the tail is: everything after RAM. In bytes.
    #[must_use]
    pub fn tail(&self) -> Range<u64> {
        self.tail.clone()
    }

    /// Number of pages that were sent with content; a page sent twice counts twice.
    #[must_use]
    pub fn data_pages(&self) -> u64 {
        self.counts.data
    }

    /// Number of pages that were sent as zeros; a page sent twice counts twice.
    #[must_use]
    pub fn zero_pages(&self) -> u64 {
        self.counts.zero
    }

    /// What the stream holds of one page, by numbers of block and page; absent if there is no
    /// such page.
    #[must_use]
    pub fn page(&self, block: usize, page_no: u64) -> PageAt {
        self.tables
            .get(block)
            .map_or(PageAt::Absent, |table| table.get(page_no))
    }

    /// One RAM block as a flat image, read from the same `source`. `None` if there is no block
    /// of this number.
    #[must_use]
    pub fn image<'a>(&'a self, source: &'a dyn Bytes, block: usize) -> Option<RamImage<'a>> {
        let size_bytes = self.layout.blocks.get(block)?.size_bytes;
        let table = self.tables.get(block)?;
        Some(RamImage::new(
            source,
            table,
            size_bytes,
            self.layout.page_size_bytes,
        ))
    }
}

/// The state of the pass.
struct Scan<'a> {
    cursor: Cursor<'a>,
    layout: Layout,
    tables: Vec<PageTable>,
    counts: PageCounts,
    /// Block of the page before, which outlives the section.
    last: Option<usize>,
}

impl Scan<'_> {
    /// Reads sections until RAM is complete. Returns where the tail begins.
    fn sections(&mut self) -> Result<u64, Error> {
        const WHAT: &str = "a section";
        loop {
            let offset = self.cursor.offset();
            match self.cursor.peek()? {
                Some(wire::SECTION_PART) => {
                    self.cursor.u8(WHAT)?;
                    self.ram_section(offset)?;
                }
                Some(wire::SECTION_END) => {
                    self.cursor.u8(WHAT)?;
                    self.ram_section(offset)?;
                    self.layout.end_section = true;
                    return Ok(self.cursor.offset());
                }
                Some(wire::SECTION_COMMAND) => self.command(offset)?,
                Some(wire::SECTION_FULL) => return Ok(offset),
                Some(wire::SECTION_START) => {
                    let what = "another device that sends in parts".into();
                    return Err(Error::Unsupported { what, offset });
                }
                Some(_) => {
                    return Err(Error::Malformed {
                        what: "unknown section",
                        offset,
                    });
                }
                None => return Err(Error::Truncated { what: WHAT, offset }),
            }
        }
    }

    fn command(&mut self, offset: u64) -> Result<(), Error> {
        const WHAT: &str = "a command";
        self.cursor.u8(WHAT)?;
        let command = self.cursor.u16(WHAT)?;
        let len = self.cursor.u16(WHAT)?;
        if command != wire::COMMAND_SWITCHOVER_START || len != 0 || self.layout.switchover_start {
            let what = format!("the command {command}");
            return Err(Error::Unsupported { what, offset });
        }
        self.layout.switchover_start = true;
        Ok(())
    }

    fn ram_section(&mut self, offset: u64) -> Result<(), Error> {
        let section_id = self.cursor.u32("a section of RAM")?;
        if section_id != self.layout.section_id {
            let what = format!("the section {section_id} of another device");
            return Err(Error::Unsupported { what, offset });
        }
        self.ram_pages()?;
        if self.layout.footers {
            read_footer(&mut self.cursor, section_id)?;
        }
        Ok(())
    }

    fn ram_pages(&mut self) -> Result<(), Error> {
        let flag_mask = u64::from(self.layout.page_size_bytes) - 1;
        loop {
            let offset = self.cursor.offset();
            let word = self.cursor.u64("a page")?;
            let (address, flags) = (word & !flag_mask, word & flag_mask);
            let kind = flags & !wire::RAM_CONTINUE;
            match kind {
                wire::RAM_PAGE | wire::RAM_ZERO => {
                    let block = self.block_of_page(flags & wire::RAM_CONTINUE != 0, offset)?;
                    self.ram_page(block, address, kind, offset)?;
                }
                wire::RAM_EOS if word == wire::RAM_EOS => return Ok(()),
                wire::RAM_EOS | wire::RAM_MEM_SIZE => {
                    return Err(Error::Malformed {
                        what: "misplaced mark in RAM",
                        offset,
                    });
                }
                _ => {
                    let what = wire::flag_name(kind).into();
                    return Err(Error::Unsupported { what, offset });
                }
            }
        }
    }

    /// The block that a page belongs to: the one before, or the one that is named next.
    #[inline]
    fn block_of_page(&mut self, same: bool, offset: u64) -> Result<usize, Error> {
        if same {
            return self.last.ok_or(Error::Malformed {
                what: "page without a block",
                offset,
            });
        }
        let name = self.cursor.short_string("the block of a page")?;
        let found = self
            .layout
            .blocks
            .iter()
            .position(|block| block.id.as_bytes() == name);
        self.last = found;
        found.ok_or(Error::Malformed {
            what: "page of an unknown block",
            offset,
        })
    }

    #[inline]
    fn ram_page(
        &mut self,
        block: usize,
        address: u64,
        kind: u64,
        offset: u64,
    ) -> Result<(), Error> {
        if address >= self.layout.blocks[block].size_bytes {
            return Err(Error::Malformed {
                what: "page outside of its block",
                offset,
            });
        }
        let page_size = u64::from(self.layout.page_size_bytes);
        let page = if kind == wire::RAM_PAGE {
            let at = self.cursor.offset();
            self.cursor.skip(page_size, "the bytes of a page")?;
            self.counts.data += 1;
            PageAt::At(at)
        } else {
            self.counts.zero += 1;
            match self.cursor.u8("the value of a page")? {
                0 => PageAt::Zero,
                byte => PageAt::Fill(byte),
            }
        };
        self.tables[block].set(address / page_size, page);
        Ok(())
    }
}
