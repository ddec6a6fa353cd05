//! Sources of images: joins NBD exports and captured memory to the repository's ingest.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmtwin_hypervisor::spool::SpoolData;
use vmtwin_migration::{Bytes, RamImage};
use vmtwin_nbd::{Client, StatusExtent, context};
use vmtwin_repository::{Extent, ExtentKind, ImageSource};

/// How much of a disk one question after its extents covers, bytes.
const STATUS_SPAN_BYTES: u64 = 1 << 30;

/// A disk behind an NBD export.
pub(crate) struct NbdSource {
    client: Client,
    /// The answer to the last question: where it begins, and its extents.
    window: Mutex<(u64, Vec<StatusExtent>)>,
}

impl NbdSource {
    pub(crate) fn new(client: Client) -> NbdSource {
        NbdSource {
            client,
            window: Mutex::new((0, Vec::new())),
        }
    }

    fn lookup(window: &(u64, Vec<StatusExtent>), offset: u64) -> Option<Extent> {
        let mut at = window.0;
        for extent in &window.1 {
            let end = at + extent.len_bytes;
            if (at..end).contains(&offset) {
                let zero = extent.flags & context::ZERO != 0;
                let kind = if zero {
                    ExtentKind::Hole
                } else {
                    ExtentKind::Data
                };
                return Some(Extent {
                    len: end - offset,
                    kind,
                });
            }
            at = end;
        }
        None
    }
}

impl ImageSource for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.client.size_bytes()
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let left = self.client.size_bytes().saturating_sub(offset);
        if !self.client.has_context(context::BASE_ALLOCATION) {
            return Ok(Extent {
                len: left,
                kind: ExtentKind::Data,
            });
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(extent) = Self::lookup(&window, offset) {
            return Ok(extent);
        }
        let span = left.min(STATUS_SPAN_BYTES);
        let extents = self
            .client
            .block_status(context::BASE_ALLOCATION, offset, span)
            .map_err(io::Error::other)?;
        *window = (offset, extents);
        Self::lookup(&window, offset).ok_or_else(|| io::Error::other("no extent at the offset"))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.client.read_at(offset, buf).map_err(io::Error::other)
    }
}

/// A spooled stream, for the parser.
pub(crate) struct SpoolBytes<'a>(pub(crate) &'a SpoolData);

impl Bytes for SpoolBytes<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

/// One block of captured RAM.
pub(crate) struct RamSource<'a>(pub(crate) RamImage<'a>);

impl ImageSource for RamSource<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let extent = self.0.extent_at(offset);
        let kind = match extent.kind {
            vmtwin_migration::ExtentKind::Data => ExtentKind::Data,
            vmtwin_migration::ExtentKind::Zero => ExtentKind::Hole,
        };
        Ok(Extent {
            len: extent.len_bytes,
            kind,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
}
