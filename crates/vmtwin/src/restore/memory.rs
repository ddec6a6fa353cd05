//! Makes the migration stream of a stored state, into a file or straight into QEMU.
//!
//! ```text
//! image of a block ─ copy_to, several threads, in the order of the packs ─► pages ─► StreamWriter ─► out
//! ```
//! The order of pages in a stream is free, so they are written as the repository gives them: that
//! reads every pack once, where the order of addresses would ask for every grain alone.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use vmtwin_migration::{RebuildError, StreamWriter};
use vmtwin_repository::{
    ExtentKind, Image, ImageSink, Progress, ProgressDelta, Repository, Snapshot, SnapshotReader,
};

use super::error::RestoreError;
use super::inventory::Inventory;
use super::progress::{Phase, RestoreProgress, Watch};
use super::state::{ParsedState, StoredState};
use crate::content::MEMORY_STREAM;

/// Pieces on the way to the stream; a piece is a grain, 64 KiB.
const QUEUE: usize = 32;

/// A piece of RAM: its offset, and what is there.
type Piece = (u64, Vec<u8>);

/// Writes the whole stream; gives its length.
pub(super) fn write(
    reader: &SnapshotReader,
    state: &StoredState,
    out: &mut dyn Write,
    watch: Watch<'_>,
) -> Result<u64, RestoreError> {
    let parsed = matches!(state, StoredState::Parsed(_));
    let mut out = Watched {
        out,
        watch,
        counts: !parsed,
    };
    let result = match state {
        StoredState::Parsed(state) => rebuild(state, &mut out, watch),
        StoredState::Stream { .. } => {
            let copied = reader
                .copy_file(MEMORY_STREAM, &mut out)
                .map_err(RestoreError::from);
            copied.and_then(|len| out.flush().map(|()| len).map_err(write_error))
        }
    };
    match result {
        Err(_) if watch.cancelled() => Err(RestoreError::Cancelled),
        other => other,
    }
}

/// Writes the live state of a snapshot as QEMU's migration stream; gives its length.
///
/// # Errors
/// See [`RestoreError`].
pub(crate) fn write_state(
    repository: &Repository,
    snapshot: &Snapshot,
    out: &mut dyn Write,
    progress: &dyn RestoreProgress,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<u64, RestoreError> {
    let watch = Watch {
        progress,
        cancelled,
    };
    let reader = repository.reader(snapshot)?;
    let state = Inventory::read(&reader, None)?.open_state(&reader)?;
    progress.begin(Phase::Memory, state.total_bytes());
    let written = write(&reader, &state, out, watch);
    progress.end();
    written
}

fn rebuild(
    state: &ParsedState,
    out: &mut Watched<'_>,
    watch: Watch<'_>,
) -> Result<u64, RestoreError> {
    let writer = StreamWriter::new(&state.head, &state.layout, out);
    let mut writer = writer.map_err(RestoreError::Rebuild)?;
    for (number, image) in state.ram.iter().enumerate() {
        if let Some(image) = image {
            write_block(&mut writer, number, image, watch)?;
        }
    }
    let rebuilt = writer.finish(&state.tail).map_err(RestoreError::Rebuild)?;
    Ok(rebuilt.stream_bytes)
}

fn write_block(
    writer: &mut StreamWriter<'_>,
    number: usize,
    image: &Image,
    watch: Watch<'_>,
) -> Result<(), RestoreError> {
    write_zeros(writer, number, image).map_err(RestoreError::Rebuild)?;
    let (sender, receiver) = sync_channel(QUEUE);
    thread::scope(|scope| {
        let copy = scope.spawn(move || image.copy_to(&Pieces(sender), &watch));
        let written = write_pieces(writer, number, &receiver);
        // A copy that still goes on ends, since nobody hears it.
        drop(receiver);
        let copied = copy.join().map_err(|_| RestoreError::Internal {
            what: "copy of memory",
        })?;
        written.map_err(RestoreError::Rebuild)?;
        copied?;
        Ok(())
    })
}

/// The stretches that are known to be zero: the copy leaves them out.
fn write_zeros(
    writer: &mut StreamWriter<'_>,
    number: usize,
    image: &Image,
) -> Result<(), RebuildError> {
    let mut offset = 0;
    while offset < image.size_bytes() {
        let extent = image.extent_at(offset);
        if extent.kind != ExtentKind::Data {
            writer.zeros(number, offset, extent.len)?;
        }
        offset += extent.len.max(1);
    }
    Ok(())
}

fn write_pieces(
    writer: &mut StreamWriter<'_>,
    number: usize,
    pieces: &Receiver<Piece>,
) -> Result<(), RebuildError> {
    for (offset, bytes) in pieces {
        writer.pages(number, offset, &bytes)?;
    }
    Ok(())
}

/// Sends what a copy writes to the one thread that makes the stream.
struct Pieces(SyncSender<Piece>);

impl ImageSink for Pieces {
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let sent = self.0.send((offset_bytes, data.to_vec()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Ends a stream that is cancelled; counts where nothing else does.
struct Watched<'a> {
    out: &'a mut dyn Write,
    watch: Watch<'a>,
    counts: bool,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.watch.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let len = self.out.write(bytes)?;
        if self.counts {
            let bytes_processed = len as u64;
            self.watch.advance(ProgressDelta {
                bytes_processed,
                ..ProgressDelta::default()
            });
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_error(error: io::Error) -> RestoreError {
    RestoreError::Rebuild(RebuildError::Write(error))
}
