//! Makes small streams by hand, after the format's description and not with the crate's own
//! writer, so that reader and writer cannot agree on the same mistake.

/// What a stream is to hold.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) footers: bool,
    pub(crate) configuration: bool,
    pub(crate) switchover_start: bool,
    pub(crate) end_section: bool,
    pub(crate) description: bool,
    /// Name and pages of each block.
    pub(crate) blocks: Vec<(String, u64)>,
    /// Sections of pages: block, page, content.
    pub(crate) sections: Vec<Vec<Sent>>,
    /// Bytes of device state.
    pub(crate) device: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) block: usize,
    pub(crate) page_no: u64,
    pub(crate) content: Content,
    /// Names the block even if it is the one of the page before.
    pub(crate) name_again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Fill(u8),
    Seed(u8),
}

pub(crate) const PAGE: usize = 4096;
const SECTION_ID: u32 = 3;

impl Content {
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Fill(byte) => vec![byte; PAGE],
            Self::Seed(seed) => (0..PAGE)
                .map(|at| (at as u8).wrapping_mul(seed) ^ seed)
                .collect(),
        }
    }
}

impl Recipe {
    pub(crate) fn small() -> Self {
        let page = |block, page_no, content| Sent {
            block,
            page_no,
            content,
            name_again: false,
        };
        Self {
            footers: true,
            configuration: true,
            switchover_start: false,
            end_section: false,
            description: true,
            blocks: vec![("pc.ram".into(), 6), ("pc.rom".into(), 2)],
            sections: vec![
                vec![
                    page(0, 3, Content::Seed(7)),
                    page(0, 0, Content::Fill(0)),
                    page(1, 1, Content::Seed(9)),
                ],
                vec![page(1, 0, Content::Fill(0)), page(0, 1, Content::Seed(11))],
            ],
            device: b"device state".to_vec(),
        }
    }

    /// The stream, and where RAM begins and the tail begins.
    pub(crate) fn stream(&self) -> (Vec<u8>, usize, usize) {
        let mut out = b"QEVM\0\0\0\x03".to_vec();
        if self.configuration {
            out.extend(b"\x07\0\0\0\x04pc-x");
        }
        self.setup(&mut out);
        let ram_start = out.len();
        let mut last = None;
        let count = self.sections.len();
        for (number, section) in self.sections.iter().enumerate() {
            let is_end = self.end_section && number + 1 == count;
            if is_end && self.switchover_start {
                out.extend(b"\x08\0\x0b\0\0");
            }
            out.push(if is_end { 3 } else { 2 });
            out.extend(SECTION_ID.to_be_bytes());
            for sent in section {
                self.page(&mut out, sent, &mut last);
            }
            out.extend(0x10u64.to_be_bytes());
            self.footer(&mut out, SECTION_ID);
        }
        let tail_start = out.len();
        self.tail(&mut out);
        (out, ram_start, tail_start)
    }

    fn setup(&self, out: &mut Vec<u8>) {
        out.push(1);
        out.extend(SECTION_ID.to_be_bytes());
        out.extend(b"\x03ram\0\0\0\0\0\0\0\x04");
        let total: u64 = self
            .blocks
            .iter()
            .map(|(_, pages)| pages * PAGE as u64)
            .sum();
        out.extend((total | 4).to_be_bytes());
        for (id, pages) in &self.blocks {
            out.push(id.len() as u8);
            out.extend(id.as_bytes());
            out.extend((pages * PAGE as u64).to_be_bytes());
        }
        out.extend(0x10u64.to_be_bytes());
        self.footer(out, SECTION_ID);
    }

    fn page(&self, out: &mut Vec<u8>, sent: &Sent, last: &mut Option<usize>) {
        let same = *last == Some(sent.block) && !sent.name_again;
        let kind = if matches!(sent.content, Content::Fill(_)) {
            2
        } else {
            8
        };
        let flags = kind | if same { 0x20 } else { 0 };
        out.extend(((sent.page_no * PAGE as u64) | flags).to_be_bytes());
        if !same {
            let id = &self.blocks[sent.block].0;
            out.push(id.len() as u8);
            out.extend(id.as_bytes());
            *last = Some(sent.block);
        }
        match sent.content {
            Content::Fill(byte) => out.push(byte),
            seed => out.extend(seed.bytes()),
        }
    }

    fn tail(&self, out: &mut Vec<u8>) {
        out.extend(b"\x04\0\0\0\x09\x05timer\0\0\0\0\0\0\0\x02");
        out.extend(&self.device);
        self.footer(out, 9);
        out.push(0);
        if self.description {
            let json = b"{\"page_size\": 4096, \"devices\": []}";
            out.push(6);
            out.extend((json.len() as u32).to_be_bytes());
            out.extend(json);
        }
    }

    fn footer(&self, out: &mut Vec<u8>, id: u32) {
        if self.footers {
            out.push(0x7e);
            out.extend(id.to_be_bytes());
        }
    }

    /// What guest memory is after loading the stream into memory of zeros.
    pub(crate) fn memory(&self) -> Vec<Vec<u8>> {
        let mut blocks: Vec<Vec<u8>> = self
            .blocks
            .iter()
            .map(|(_, pages)| vec![0; *pages as usize * PAGE])
            .collect();
        for sent in self.sections.iter().flatten() {
            let at = sent.page_no as usize * PAGE;
            blocks[sent.block][at..at + PAGE].copy_from_slice(&sent.content.bytes());
        }
        blocks
    }
}
