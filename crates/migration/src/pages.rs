//! Where each page of a RAM block is in the stream: a table that costs 8 bytes for a page with
//! content, one bit for a zero page among zero pages, and nothing for what was never sent.

/// Pages described by one chunk of the table: 2 MiB of RAM at 4 KiB a page.
const CHUNK_PAGES: u64 = 512;

/// What the stream holds of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageAt {
    /// The page was not sent; its content does not matter to the guest.
    Absent,
    /// All bytes are zero.
    Zero,
    /// All bytes have this value, which is not zero (only very old versions send this).
    Fill(u8),
    /// The bytes are in the stream at this offset, in bytes from its start.
    At(u64),
}

impl PageAt {
    fn pack(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Zero => 1,
            Self::Fill(byte) => u64::from(byte) << 2 | 2,
            Self::At(offset) => offset << 2 | 3,
        }
    }

    fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Absent,
            1 => Self::Zero,
            2 => Self::Fill((word >> 2) as u8),
            _ => Self::At(word >> 2),
        }
    }

    /// Whether the page reads as zeros.
    pub(crate) fn is_zero(self) -> bool {
        matches!(self, Self::Absent | Self::Zero)
    }
}

#[derive(Debug, Clone, Default)]
enum Chunk {
    /// Nothing was sent.
    #[default]
    Absent,
    /// Only zero pages were sent: a bit is set for each.
    Zeros(Box<[u64; CHUNK_PAGES as usize / 64]>),
    /// One word for each page.
    Words(Box<[u64; CHUNK_PAGES as usize]>),
}

impl Chunk {
    fn get(&self, slot: usize) -> PageAt {
        match self {
            Self::Absent => PageAt::Absent,
            Self::Zeros(bits) if bits[slot / 64] >> (slot % 64) & 1 == 1 => PageAt::Zero,
            Self::Zeros(_) => PageAt::Absent,
            Self::Words(words) => PageAt::unpack(words[slot]),
        }
    }

    fn set(&mut self, slot: usize, page: PageAt) {
        match (&mut *self, page) {
            (Self::Words(words), page) => words[slot] = page.pack(),
            (Self::Zeros(bits), PageAt::Zero) => bits[slot / 64] |= 1 << (slot % 64),
            (Self::Absent, PageAt::Zero) => {
                *self = Self::Zeros(Box::default());
                self.set(slot, page);
            }
            _ => {
                let mut words = Box::new([0; CHUNK_PAGES as usize]);
                for (slot, word) in words.iter_mut().enumerate() {
                    *word = self.get(slot).pack();
                }
                words[slot] = page.pack();
                *self = Self::Words(words);
            }
        }
    }

    fn is_all_zero(&self) -> bool {
        !matches!(self, Self::Words(_))
    }
}

/// All pages of one RAM block. Grows to the highest page that was sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageTable {
    chunks: Vec<Chunk>,
}

impl PageTable {
    /// The page with this number; absent if it lies outside of the block.
    pub(crate) fn get(&self, page_no: u64) -> PageAt {
        let chunk = usize::try_from(page_no / CHUNK_PAGES)
            .ok()
            .and_then(|at| self.chunks.get(at));
        chunk.map_or(PageAt::Absent, |chunk| {
            chunk.get((page_no % CHUNK_PAGES) as usize)
        })
    }

    /// Remembers a page, over what was known of it. The caller has checked that the page lies
    /// within its block, which bounds the table.
    pub(crate) fn set(&mut self, page_no: u64, page: PageAt) {
        let at = (page_no / CHUNK_PAGES) as usize;
        if at >= self.chunks.len() {
            self.chunks.resize_with(at + 1, Chunk::default);
        }
        self.chunks[at].set((page_no % CHUNK_PAGES) as usize, page);
    }

    /// Whether the pages from `first` on read as zeros, and the first page after it, up to
    /// `end`, that differs in that.
    pub(crate) fn run(&self, first: u64, end: u64) -> (bool, u64) {
        let zero = self.get(first).is_zero();
        let mut page_no = first + 1;
        while page_no < end {
            let at = usize::try_from(page_no / CHUNK_PAGES).ok();
            let Some(chunk) = at.and_then(|at| self.chunks.get(at)) else {
                return (zero, if zero { end } else { page_no });
            };
            if chunk.is_all_zero() {
                if !zero {
                    return (zero, page_no);
                }
                page_no = (page_no / CHUNK_PAGES + 1) * CHUNK_PAGES;
            } else if chunk.get((page_no % CHUNK_PAGES) as usize).is_zero() == zero {
                page_no += 1;
            } else {
                return (zero, page_no);
            }
        }
        (zero, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_and_later_wins() {
        let mut table = PageTable::default();
        assert_eq!(table.get(u64::MAX), PageAt::Absent);
        for page_no in [0, 1, 511, 512, 5_000] {
            table.set(page_no, PageAt::Zero);
            assert_eq!(table.get(page_no), PageAt::Zero);
        }
        table.set(511, PageAt::At(7));
        table.set(1, PageAt::Fill(0xff));
        table.set(511, PageAt::At(9));
        assert_eq!(table.get(0), PageAt::Zero);
        assert_eq!(table.get(1), PageAt::Fill(0xff));
        assert_eq!(table.get(2), PageAt::Absent);
        assert_eq!(table.get(511), PageAt::At(9));
        assert_eq!(table.get(512), PageAt::Zero);
        assert_eq!(table.get(513), PageAt::Absent);
        table.set(511, PageAt::Zero);
        assert_eq!(table.get(511), PageAt::Zero);
    }

    #[test]
    fn runs_alternate_and_end_at_the_end() {
        let mut table = PageTable::default();
        table.set(3, PageAt::At(100));
        table.set(4, PageAt::Fill(1));
        table.set(1_500, PageAt::At(200));
        assert_eq!(table.run(0, 2_000), (true, 3));
        assert_eq!(table.run(3, 2_000), (false, 5));
        assert_eq!(table.run(5, 2_000), (true, 1_500));
        assert_eq!(table.run(1_500, 2_000), (false, 1_501));
        assert_eq!(table.run(1_501, 2_000), (true, 2_000));
        assert_eq!(table.run(3, 4), (false, 4));
    }
}
