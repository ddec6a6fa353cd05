//! An image on its way out: packs are read in order, each blob once, by a few threads.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};

use crate::blob_reader::BlobReader;
use crate::control::{Control, POLL, most_telling};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image::Chunk;
use crate::image_source::{ImageSink, Progress, ProgressDelta};
use crate::index::BlobPlace;
use crate::pack::BlobKind;
use crate::stats::CopyStats;

/// Threads that read, unfold and write.
const THREADS: usize = 4;
/// Longest piece of a pack that is read at once, unless one blob is longer.
const READ_BYTES: u64 = 4 << 20;
/// Unneeded bytes between two blobs that are read along with them.
const GAP_BYTES: u64 = 64 << 10;

/// A chunk to write: where it is stored and where it goes.
struct Piece {
    id: Id,
    place: BlobPlace,
    target: u64,
}

struct Copy<'a> {
    blobs: &'a BlobReader,
    sink: &'a dyn ImageSink,
    progress: &'a dyn Progress,
    control: Control,
    pieces: Vec<Piece>,
    reads: Vec<Range<usize>>,
    next: AtomicUsize,
    stats: Mutex<CopyStats>,
}

/// Copies all chunks that are not zero.
pub(crate) fn copy_image(
    blobs: &BlobReader,
    chunks: &[Chunk],
    sink: &dyn ImageSink,
    progress: &dyn Progress,
) -> Result<CopyStats> {
    let (mut pieces, zero_bytes) = pieces(blobs, chunks)?;
    pieces.sort_unstable_by_key(|p| (p.place.pack, p.place.offset_bytes, p.target));
    let copy = Copy {
        blobs,
        sink,
        progress,
        control: Control::default(),
        reads: reads(&pieces),
        pieces,
        next: AtomicUsize::new(0),
        stats: Mutex::new(CopyStats {
            bytes_total: chunks.last().map_or(0, |chunk| chunk.end),
            ..CopyStats::default()
        }),
    };
    progress.advance(ProgressDelta {
        bytes_processed: zero_bytes,
        ..ProgressDelta::default()
    });
    copy.run()
}

/// What to write, and how many bytes are zero.
fn pieces(blobs: &BlobReader, chunks: &[Chunk]) -> Result<(Vec<Piece>, u64)> {
    let mut pieces = Vec::new();
    let mut zero_bytes = 0;
    let mut target = 0;
    for chunk in chunks {
        if chunk.zero {
            zero_bytes += chunk.end - target;
        } else {
            let (id, place) = (chunk.id, blobs.place(BlobKind::Data, &chunk.id)?);
            pieces.push(Piece { id, place, target });
        }
        target = chunk.end;
    }
    Ok((pieces, zero_bytes))
}

/// Groups sorted pieces into reads of neighbours in one pack.
fn reads(pieces: &[Piece]) -> Vec<Range<usize>> {
    let end = |p: &Piece| u64::from(p.place.offset_bytes) + u64::from(p.place.sealed_bytes);
    let mut reads: Vec<Range<usize>> = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        if let Some(read) = reads.last_mut() {
            let (first, before) = (&pieces[read.start], &pieces[number - 1]);
            if first.place.pack != piece.place.pack {
                // Offsets of different packs cannot be compared.
                reads.push(number..number + 1);
                continue;
            }
            let near = u64::from(piece.place.offset_bytes) <= end(before) + GAP_BYTES;
            let short = end(piece) - u64::from(first.place.offset_bytes) <= READ_BYTES;
            let same = piece.id == before.id;
            if same || (near && short) {
                read.end = number + 1;
                continue;
            }
        }
        reads.push(number..number + 1);
    }
    reads
}

impl Copy<'_> {
    fn run(self) -> Result<CopyStats> {
        let results = std::thread::scope(|scope| {
            let (done, waiting) = channel::<()>();
            let threads: Vec<_> = (0..THREADS.min(self.reads.len()))
                .map(|_| {
                    let (done, copy) = (done.clone(), &self);
                    scope.spawn(move || {
                        let result = copy.control.watch(copy.run_thread());
                        drop(done);
                        result
                    })
                })
                .collect();
            drop(done);
            while waiting.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if self.progress.cancelled() {
                    self.control.cancel();
                }
            }
            let panicked = |_| Err(Error::AlreadyFailed);
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(panicked))
                .collect::<Vec<_>>()
        });
        match most_telling(results.into_iter().filter_map(Result::err)) {
            Some(error) => Err(error),
            None => Ok(self
                .stats
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn run_thread(&self) -> Result<()> {
        let mut buffer = Vec::new();
        while let Some(read) = self.reads.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.control.check()?;
            self.copy_read(&self.pieces[read.clone()], &mut buffer)?;
        }
        Ok(())
    }

    fn copy_read(&self, pieces: &[Piece], buffer: &mut Vec<u8>) -> Result<()> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(());
        };
        let start = first.place.offset_bytes as usize;
        let end = last.place.offset_bytes as usize + last.place.sealed_bytes as usize;
        if buffer.len() < end - start {
            buffer.resize(end - start, 0);
        }
        let read = &mut buffer[..end - start];
        let whole = self
            .blobs
            .read_pack(first.place.pack, first.place.offset_bytes, read)
            .is_ok();
        self.report(0, read.len() as u64, 0);
        for same in pieces.chunk_by(|a, b| a.id == b.id) {
            self.control.check()?;
            let (id, place) = (&same[0].id, same[0].place);
            let from = place.offset_bytes as usize - start;
            let sealed = &mut read[from..from + place.sealed_bytes as usize];
            let plain = match whole.then(|| self.blobs.decode(id, &place, sealed)) {
                Some(Ok(plain)) => plain,
                // Alone, and from its other places if it has some; else this says why not.
                _ => self.blobs.read(BlobKind::Data, id)?,
            };
            for piece in same {
                let written = self.sink.write_at(piece.target, &plain);
                written.map_err(|source| Error::Sink {
                    offset_bytes: piece.target,
                    source,
                })?;
                self.report(plain.len() as u64, 0, plain.len() as u64);
            }
        }
        Ok(())
    }

    fn report(&self, processed: u64, fetched: u64, written: u64) {
        {
            let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.bytes_fetched += fetched;
            stats.bytes_written += written;
        }
        self.progress.advance(ProgressDelta {
            bytes_processed: processed,
            bytes_read: fetched,
            bytes_new: written,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(pack: &[u8], offset_bytes: u32) -> Piece {
        let place = BlobPlace {
            pack: Id::of(pack),
            offset_bytes,
            sealed_bytes: 100,
            raw_bytes: 100,
            compressed: false,
        };
        Piece {
            id: Id::of(&offset_bytes.to_le_bytes()),
            place,
            target: 0,
        }
    }

    /// A piece at the beginning of a pack follows one far into another pack.
    #[test]
    fn pieces_of_different_packs_are_read_apart() {
        let pieces = [
            piece(b"a", 9000),
            piece(b"a", 9100),
            piece(b"b", 0),
            piece(b"b", 8 << 20),
        ];
        assert_eq!(reads(&pieces), [0..2, 2..3, 3..4]);
    }
}
