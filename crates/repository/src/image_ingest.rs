//! One image on its way in: lanes claim runs of grains, read, test, hash and store them.
//!
//! Every lane does all steps for its run, so as many reads are in flight as there are lanes, and
//! nothing queues up between steps. The caller's thread only watches for a cancel.

use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};

use crate::blob_writer::{BlobWriter, Scratch, Stored};
use crate::control::{Control, POLL, most_telling};
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_source::{ImageSource, Progress, ProgressDelta};
use crate::image_trees::{ImageTrees, Slot};
use crate::options::ImageOptions;
use crate::pack::BlobKind;
use crate::parent::ParentImage;
use crate::plan::{Parts, Planner, Work};
use crate::stats::ImageStats;
use crate::zero::is_zero;

/// What an image needs of its backup.
pub(crate) struct Context<'a> {
    pub(crate) path: &'a str,
    pub(crate) writer: &'a BlobWriter,
    pub(crate) control: &'a Control,
    pub(crate) lanes: usize,
    pub(crate) zstd_level: i32,
}

struct Ingest<'a> {
    context: &'a Context<'a>,
    source: &'a dyn ImageSource,
    progress: &'a dyn Progress,
    parent: Option<&'a ParentImage>,
    grain_bytes: usize,
    piece_bytes: usize,
    planner: Planner<'a>,
    trees: ImageTrees<'a>,
    zero_piece: OnceLock<Id>,
}

/// One thread's buffers and counts.
struct Lane {
    scratch: Scratch,
    buffer: Vec<u8>,
    stats: ImageStats,
}

/// Stores an image; gives the id of its folder's tree.
pub(crate) fn ingest(
    context: &Context<'_>,
    source: &dyn ImageSource,
    options: &ImageOptions,
    progress: &dyn Progress,
) -> Result<(Id, ImageStats)> {
    let (grain_bytes, piece_bytes) = options.lengths()?;
    let size_bytes = source.size_bytes();
    let ingest = Ingest {
        context,
        source,
        progress,
        parent: options.parent.as_deref(),
        grain_bytes,
        piece_bytes,
        planner: Planner::new(source, size_bytes, grain_bytes),
        trees: ImageTrees::new(context.writer, size_bytes, grain_bytes)?,
        zero_piece: OnceLock::new(),
    };
    let mut stats = ingest.run_lanes()?;
    stats.bytes_total = size_bytes;
    let mut scratch = Scratch::new(context.zstd_level)?;
    let tree = ingest.trees.finish(&mut scratch, &mut stats)?;
    Ok((tree, stats))
}

impl Ingest<'_> {
    fn run_lanes(&self) -> Result<ImageStats> {
        let control = self.context.control;
        let results = std::thread::scope(|scope| {
            let (done, waiting) = channel::<()>();
            let lanes: Vec<_> = (0..self.context.lanes)
                .map(|_| {
                    let done = done.clone();
                    scope.spawn(move || {
                        let result = control.watch(self.run_lane());
                        drop(done);
                        result
                    })
                })
                .collect();
            drop(done);
            // Nothing is ever sent: the channel closes when the last lane is done.
            while waiting.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if self.progress.cancelled() {
                    control.cancel();
                }
            }
            let panicked = |_| Err(Error::AlreadyFailed);
            lanes
                .into_iter()
                .map(|lane| lane.join().unwrap_or_else(panicked))
                .collect::<Vec<_>>()
        });
        let mut stats = ImageStats::default();
        let mut errors = Vec::new();
        for result in results {
            match result {
                Ok(part) => stats.add(&part),
                Err(error) => errors.push(error),
            }
        }
        match most_telling(errors.into_iter()) {
            Some(error) => Err(error),
            None => Ok(stats),
        }
    }

    fn run_lane(&self) -> Result<ImageStats> {
        let mut lane = Lane {
            scratch: Scratch::new(self.context.zstd_level)?,
            buffer: Vec::new(),
            stats: ImageStats::default(),
        };
        while let Some(work) = self
            .planner
            .claim()
            .map_err(|(at, e)| self.source_error(at, e))?
        {
            self.context.control.check()?;
            match work {
                Work::Zero { first, grains } => {
                    let (start, _) = self.planner.range(first);
                    let (last, length) = self.planner.range(first + grains - 1);
                    lane.stats.bytes_zero += last + length - start;
                    self.put(first, vec![Slot::Zero; grains], &mut lane)?;
                    self.advance(last + length - start, 0, 0);
                }
                Work::Unchanged { first, grains } => self.take_over(first, grains, &mut lane)?,
                Work::Read { first, grains } => {
                    let (start, _) = self.planner.range(first);
                    let (last, length) = self.planner.range(first + grains - 1);
                    let whole = [(start, last + length - start)];
                    self.read_run(first, grains, &whole, &mut lane)?;
                }
                Work::Mixed { grain, parts } => self.read_mixed(grain, &parts, &mut lane)?,
            }
        }
        Ok(lane.stats)
    }

    fn source_error(&self, offset_bytes: u64, source: std::io::Error) -> Error {
        Error::Source {
            path: self.context.path.to_owned(),
            offset_bytes,
            source,
        }
    }

    fn advance(&self, processed: u64, read: u64, new: u64) {
        self.progress.advance(ProgressDelta {
            bytes_processed: processed,
            bytes_read: read,
            bytes_new: new,
        });
    }

    fn put(&self, first: usize, slots: Vec<Slot>, lane: &mut Lane) -> Result<()> {
        let slots = slots.into_iter();
        self.trees
            .put(first, slots, &mut lane.scratch, &mut lane.stats)
    }

    /// Takes grains from the parent, and reads those that it cannot give.
    fn take_over(&self, first: usize, grains: usize, lane: &mut Lane) -> Result<()> {
        let mut taken = Vec::with_capacity(grains);
        for grain in first..first + grains {
            let (start, length) = self.planner.range(grain);
            match self
                .parent_slot(start, length)
                .filter(|slot| self.knows(slot))
            {
                Some(slot) => {
                    lane.stats.chunks += slot.chunks();
                    if slot.chunks() == 0 {
                        lane.stats.bytes_zero += length;
                    }
                    taken.push(slot);
                    self.advance(length, 0, 0);
                }
                None => {
                    let before = std::mem::take(&mut taken);
                    self.put(grain - before.len(), before, lane)?;
                    self.read_run(grain, 1, &[(start, length)], lane)?;
                }
            }
        }
        self.put(first + grains - taken.len(), taken, lane)
    }

    /// Whether all chunks of a grain are in the repository.
    fn knows(&self, slot: &Slot) -> bool {
        let known = |id: &Id| self.context.writer.has(BlobKind::Data, id);
        match slot {
            Slot::Zero => true,
            Slot::One(id) => known(id),
            Slot::Pieces(ids) => ids.iter().all(known),
        }
    }

    /// What the parent has at a grain, if its chunks are laid out as ours would be.
    fn parent_slot(&self, start: u64, length: u64) -> Option<Slot> {
        let chunks = self.parent?.chunks_of(start, length)?;
        match chunks.as_slice() {
            [(only, _)] if only.zero => Some(Slot::Zero),
            [(only, _)] => Some(Slot::One(only.id)),
            pieces => {
                let mut left = length;
                for (_, piece_bytes) in pieces {
                    if *piece_bytes != left.min(self.piece_bytes as u64) {
                        return None;
                    }
                    left -= piece_bytes;
                }
                Some(Slot::Pieces(
                    pieces.iter().map(|(piece, _)| piece.id).collect(),
                ))
            }
        }
    }

    /// Reads what changed of a grain, and what the parent cannot give in pieces.
    fn read_mixed(&self, grain: usize, parts: &Parts, lane: &mut Lane) -> Result<()> {
        let (start, length) = self.planner.range(grain);
        let known = |id: &Id| self.context.writer.has(BlobKind::Data, id);
        match self.parent_slot(start, length) {
            // What is unchanged is zero.
            Some(Slot::Zero) => self.read_run(grain, 1, &parts.data, lane),
            Some(Slot::Pieces(ids)) if ids.iter().all(known) => self.patch(grain, ids, parts, lane),
            _ => self.read_run(grain, 1, &parts.all(), lane),
        }
    }

    /// Reads and stores the pieces of a grain that are not wholly as in the parent.
    fn patch(
        &self,
        grain: usize,
        mut ids: Box<[Id]>,
        parts: &Parts,
        lane: &mut Lane,
    ) -> Result<()> {
        let (grain_start, grain_length) = self.planner.range(grain);
        let new_before = lane.stats.bytes_new;
        let mut read = 0;
        for (number, id) in ids.iter_mut().enumerate() {
            let start = grain_start + (number * self.piece_bytes) as u64;
            let stop = (start + self.piece_bytes as u64).min(grain_start + grain_length);
            let within = |list: &[(u64, u64)]| -> Vec<(u64, u64)> {
                let clipped = list.iter().map(|part| Parts::clip(*part, start, stop));
                clipped.flatten().collect()
            };
            if within(&parts.unchanged) == [(start, stop - start)] {
                lane.stats.chunks += 1;
                continue;
            }
            let mut piece = std::mem::take(&mut lane.buffer);
            let length = (stop - start) as usize;
            piece.resize(length.max(piece.len()), 0);
            read += self.fill(&mut piece[..length], start, &within(&parts.all()), lane)?;
            *id = self.store_piece(&piece[..length], lane)?;
            lane.buffer = piece;
        }
        self.put(grain, vec![Slot::Pieces(ids)], lane)?;
        self.advance(grain_length, read, lane.stats.bytes_new - new_before);
        Ok(())
    }

    /// Fills a buffer from `parts`, the rest with zeros; gives what was read.
    fn fill(
        &self,
        buffer: &mut [u8],
        start: u64,
        parts: &[(u64, u64)],
        lane: &mut Lane,
    ) -> Result<u64> {
        let read = parts.iter().map(|(_, len)| len).sum::<u64>();
        if read < buffer.len() as u64 {
            buffer.fill(0);
        }
        for (at, len) in parts {
            let from = (at - start) as usize;
            self.source
                .read_at(*at, &mut buffer[from..from + *len as usize])
                .map_err(|e| self.source_error(*at, e))?;
        }
        lane.stats.bytes_read += read;
        lane.stats.bytes_zero += buffer.len() as u64 - read;
        Ok(read)
    }

    fn read_run(
        &self,
        first: usize,
        grains: usize,
        parts: &[(u64, u64)],
        lane: &mut Lane,
    ) -> Result<()> {
        let (start, _) = self.planner.range(first);
        let (last, last_length) = self.planner.range(first + grains - 1);
        let length = (last + last_length - start) as usize;
        let mut buffer = std::mem::take(&mut lane.buffer);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let run = &mut buffer[..length];
        let read = self.fill(run, start, parts, lane)?;
        self.advance(0, read, 0);
        for (number, data) in run.chunks(self.grain_bytes).enumerate() {
            self.context.control.check()?;
            let new_before = lane.stats.bytes_new;
            let slot = self.store_grain(first + number, data, lane)?;
            self.put(first + number, vec![slot], lane)?;
            self.advance(data.len() as u64, 0, lane.stats.bytes_new - new_before);
        }
        lane.buffer = buffer;
        Ok(())
    }

    fn store_grain(&self, grain: usize, data: &[u8], lane: &mut Lane) -> Result<Slot> {
        if is_zero(data) {
            lane.stats.bytes_zero += data.len() as u64;
            return Ok(Slot::Zero);
        }
        let (start, length) = self.planner.range(grain);
        let parent = self.parent_slot(start, length);
        if let Some(Slot::Pieces(_)) = parent {
            return self.store_pieces(data, lane);
        }
        let id = Id::of(data);
        let differs = matches!(parent, Some(Slot::One(before)) if before != id);
        // Pieces of zeros cost nothing now, and save reading the others when one is written.
        let split = differs || data.chunks(self.piece_bytes).any(is_zero);
        if split && data.len() > self.piece_bytes && !self.context.writer.has(BlobKind::Data, &id) {
            return self.store_pieces(data, lane);
        }
        self.store_chunk(id, data, lane)?;
        Ok(Slot::One(id))
    }

    fn store_pieces(&self, data: &[u8], lane: &mut Lane) -> Result<Slot> {
        let mut ids = Vec::with_capacity(data.len().div_ceil(self.piece_bytes));
        for piece in data.chunks(self.piece_bytes) {
            ids.push(self.store_piece(piece, lane)?);
        }
        Ok(Slot::Pieces(ids.into()))
    }

    fn store_piece(&self, piece: &[u8], lane: &mut Lane) -> Result<Id> {
        let id = if is_zero(piece) && piece.len() == self.piece_bytes {
            *self.zero_piece.get_or_init(|| Id::of(piece))
        } else {
            Id::of(piece)
        };
        self.store_chunk(id, piece, lane)?;
        Ok(id)
    }

    fn store_chunk(&self, id: Id, data: &[u8], lane: &mut Lane) -> Result<Stored> {
        let stored = self
            .context
            .writer
            .store(BlobKind::Data, id, data, &mut lane.scratch)?;
        lane.stats.count(data.len(), stored);
        Ok(stored)
    }
}
