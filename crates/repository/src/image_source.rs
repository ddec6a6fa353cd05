//! What callers implement: sources and targets of images, and progress.

use std::io;

/// What a stretch of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Not allocated; reads as zeros. Never read.
    Hole,
    /// Known to be zero. Never read.
    Zero,
    /// May hold anything.
    Data,
    /// The same as in the parent image, by a dirty bitmap for example. Taken over without reading
    /// where it covers whole chunks; the source must be able to read it all the same.
    Unchanged,
}

/// A stretch of an image that begins at an offset the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it is.
    pub kind: ExtentKind,
    /// How long it is; more than zero. May reach beyond the end of the image.
    pub len: u64,
}

/// An image to back up. Called from several threads at once.
pub trait ImageSource: Sync {
    /// Length of the image.
    fn size_bytes(&self) -> u64;

    /// The extent at `offset_bytes`, which is less than the length. Called in ascending order.
    ///
    /// # Errors
    /// Any error fails the backup.
    fn extent_at(&self, offset_bytes: u64) -> io::Result<Extent>;

    /// Fills `buf`. Must give up by itself in the end: a backup cannot interrupt it.
    ///
    /// # Errors
    /// Any error fails the backup.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// The target of an image. Called from several threads at once; a fresh target reads as zeros
/// where nothing is written.
pub trait ImageSink: Sync {
    /// Writes all of `data`.
    ///
    /// # Errors
    /// Any error ends the copy.
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()>;
}

/// What was done since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressDelta {
    /// Bytes of the image that are done, holes included.
    pub bytes_processed: u64,
    /// Bytes read: from the source of a backup, from the store of a restore.
    pub bytes_read: u64,
    /// Plain bytes that the repository did not have; for a restore, bytes written.
    pub bytes_new: u64,
}

/// Hears of progress and may cancel. Called from several threads at once.
pub trait Progress: Sync {
    /// Hears of what was done.
    fn advance(&self, delta: ProgressDelta);

    /// Asked every 50 ms; `true` ends the operation with [`crate::Error::Cancelled`].
    fn cancelled(&self) -> bool;
}

/// Neither reports nor cancels.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn advance(&self, _delta: ProgressDelta) {}

    fn cancelled(&self) -> bool {
        false
    }
}
