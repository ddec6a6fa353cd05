//! Options of a backup, with their ranges.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Result};
use crate::parent::ParentImage;

/// Options of one backup run.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// zstd level, -7 to 19. Default 1.
    pub zstd_level: i32,
    /// Length a pack is filled to, 1 to 128 MiB. Default 24 MiB.
    pub pack_bytes: usize,
    /// Pack buffers, 3 to 64; with `pack_bytes` they bound the memory. Default 6.
    pub pack_buffers: usize,
    /// Threads that write to the store, 1 to 16. Default 3.
    pub upload_threads: usize,
    /// Threads that read, hash and compress one image, 1 to 64; each has one read in flight and
    /// two grains of memory. Default: twice the processors, 4 to 16.
    pub lanes: usize,
    /// Cancels every wait of the backup, `finish` included, once it is true.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for IngestOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            zstd_level: 1,
            pack_bytes: 24 << 20,
            pack_buffers: 6,
            upload_threads: 3,
            lanes: (2 * processors).clamp(4, 16),
            cancel: None,
        }
    }
}

impl IngestOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let ranges = [
            ("zstd_level", i64::from(self.zstd_level), -7, 19),
            ("pack_bytes", self.pack_bytes as i64, 1 << 20, 128 << 20),
            ("pack_buffers", self.pack_buffers as i64, 3, 64),
            ("upload_threads", self.upload_threads as i64, 1, 16),
            ("lanes", self.lanes as i64, 1, 64),
        ];
        for (name, value, least, most) in ranges {
            if value < least || value > most {
                return Err(Error::InvalidOption {
                    reason: format!("{name} is {value}, but must be {least} to {most}"),
                });
            }
        }
        Ok(())
    }
}

/// Options of one image.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Length of a grain: a power of two, 4 KiB to 8 MiB. Default 128 KiB.
    pub grain_bytes: u32,
    /// A grain that differs from the parent's is stored in pieces of this length, so that the
    /// next change of it costs a piece. A power of two, at least 4 KiB and at least a 32nd of
    /// the grain; `None` or the grain's own length never splits. Default 64 KiB.
    pub piece_bytes: Option<u32>,
    /// The image this one developed from, in the same repository. Needed for
    /// [`crate::ExtentKind::Unchanged`] and for splitting; the grain must be the same for the
    /// parent to be of any use.
    pub parent: Option<Arc<ParentImage>>,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            grain_bytes: 128 << 10,
            piece_bytes: Some(64 << 10),
            parent: None,
        }
    }
}

impl ImageOptions {
    /// For a disk of this size: the grain grows with it from 1 TiB on, so that the index does not.
    #[must_use]
    pub fn for_disk(size_bytes: u64) -> ImageOptions {
        let default = ImageOptions::default();
        let mut grain_bytes = default.grain_bytes;
        while grain_bytes < LONGEST_DISK_GRAIN_BYTES
            && size_bytes > u64::from(grain_bytes) * MAX_DISK_GRAINS
        {
            grain_bytes *= 2;
        }
        ImageOptions {
            grain_bytes,
            ..default
        }
    }
}

/// Grains of a disk, unless they would get too long.
const MAX_DISK_GRAINS: u64 = 8 << 20;
/// Longest grain of a disk: a 16th of it is the piece.
const LONGEST_DISK_GRAIN_BYTES: u32 = 1 << 20;

/// Shortest grain and piece.
const MIN_GRAIN_BYTES: u32 = 4 << 10;
/// Longest grain.
const MAX_GRAIN_BYTES: u32 = 8 << 20;
/// Most pieces of a grain.
const MAX_PIECES: u32 = 32;

impl ImageOptions {
    /// Checked lengths of grain and piece.
    pub(crate) fn lengths(&self) -> Result<(usize, usize)> {
        let grain = self.grain_bytes;
        // A default piece may be longer than a small grain: then nothing is split.
        let piece = self.piece_bytes.unwrap_or(grain).min(grain);
        let grain_fits =
            grain.is_power_of_two() && (MIN_GRAIN_BYTES..=MAX_GRAIN_BYTES).contains(&grain);
        let piece_fits =
            piece.is_power_of_two() && piece >= MIN_GRAIN_BYTES && grain / piece <= MAX_PIECES;
        if grain_fits && piece_fits {
            Ok((grain as usize, piece as usize))
        } else {
            Err(Error::InvalidOption {
                reason: format!("grain_bytes {grain} or piece_bytes {piece} is out of range"),
            })
        }
    }
}
