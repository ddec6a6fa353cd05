//! One backup run: files and images go in, a snapshot comes out, or nothing.
//!
//! Order on the store: lock, packs, index, snapshot last, lock removed. Until the snapshot is
//! there, everything else is unreferenced and harmless; the next backup reuses what was indexed.
//! Any error ends the whole run: every later call says so, and `finish` writes no snapshot.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use crate::blob_reader::BlobReader;
use crate::blob_writer::{BlobWriter, Scratch};
use crate::buffers::BufferPool;
use crate::control::Control;
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::image_ingest;
use crate::image_source::{ImageSource, Progress};
use crate::index::Index;
use crate::lock::{LockGuard, LockMode};
use crate::options::{ImageOptions, IngestOptions};
use crate::pack::BlobKind;
use crate::reader::SnapshotReader;
use crate::repository::Repository;
use crate::snapshot::{Snapshot, SnapshotFile, SnapshotMeta};
use crate::stats::{FileStats, ImageStats};
use crate::store::{Kind, Store};
use crate::tree::Node;
use crate::tree_builder::{TreeBuilder, split};
use crate::unpacked;
use crate::upload::Uploads;

/// Chunk of a file that is not an image.
const FILE_CHUNK_BYTES: usize = 1 << 20;

/// A backup that is running. Dropping it is [`Backup::abort`].
pub struct Backup {
    lock: Arc<LockGuard>,
    store: Arc<dyn Store>,
    index: Arc<Index>,
    sealer: Arc<Sealer>,
    control: Arc<Control>,
    options: IngestOptions,
    writer: BlobWriter,
    tree: Mutex<TreeBuilder>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("lock", &self.lock.first_id())
            .finish_non_exhaustive()
    }
}

impl Backup {
    /// Locks, then loads the index.
    pub(crate) fn start(repository: &Repository, options: &IngestOptions) -> Result<Self> {
        options.check()?;
        let lock = repository.lock(LockMode::Shared)?;
        let index = Arc::new(repository.load_index(true)?);
        let (store, sealer) = (repository.store_arc(), repository.sealer_arc());
        let control = Arc::new(Control::new(options.cancel.clone()));
        let pool = BufferPool::new(options.pack_bytes, options.pack_buffers);
        let uploads = Uploads::start(
            Arc::clone(&store),
            Arc::clone(&sealer),
            Arc::clone(&control),
            pool,
            options.upload_threads,
        )?;
        let writer = BlobWriter::new(
            Arc::clone(&index),
            options.pack_bytes,
            Arc::clone(&sealer),
            Arc::clone(&control),
            uploads,
        );
        Ok(Self {
            lock: Arc::new(lock),
            store,
            index,
            sealer,
            control,
            options: options.clone(),
            writer,
            tree: Mutex::default(),
        })
    }

    /// Id of the lock as it was taken. It is renewed under new ids: [`Self::current_lock_id`].
    #[must_use]
    pub fn lock_id(&self) -> &str {
        self.lock.first_id()
    }

    /// Id of the lock now.
    #[must_use]
    pub fn current_lock_id(&self) -> String {
        self.lock.current_id()
    }

    /// Opens a snapshot for reading, to build on it. It shares the backup's index and lock.
    #[must_use]
    pub fn reader(&self, snapshot: &Snapshot) -> SnapshotReader {
        let blobs = BlobReader::new(
            Arc::clone(&self.store),
            Arc::clone(&self.sealer),
            Arc::clone(&self.index),
            Some(Arc::clone(&self.lock)),
        );
        SnapshotReader::new(Arc::new(blobs), snapshot)
    }

    /// Bytes of pack buffers that were in use at most so far. The bound is
    /// [`Self::buffer_bound_bytes`]; lanes add two grains each while an image is read.
    #[must_use]
    pub fn buffer_peak_bytes(&self) -> usize {
        let pool = self.writer.uploads.pool();
        pool.bound_bytes() / self.options.pack_buffers * pool.peak()
    }

    /// Bytes of pack buffers that can be in use at most.
    #[must_use]
    pub fn buffer_bound_bytes(&self) -> usize {
        self.writer.uploads.pool().bound_bytes()
    }

    /// Stores a small file at an absolute path of the snapshot.
    ///
    /// # Errors
    /// [`Error::InvalidPath`], and whatever the store says.
    pub fn add_bytes(&self, path: &str, mut data: &[u8]) -> Result<FileStats> {
        self.add_reader(path, &mut data)
    }

    /// Stores a file of unknown length, in fixed chunks of 1 MiB.
    ///
    /// # Errors
    /// [`Error::InvalidPath`]; [`Error::Source`] for any read error; whatever the store says.
    pub fn add_reader(&self, path: &str, reader: &mut dyn Read) -> Result<FileStats> {
        self.control.check()?;
        self.control.watch(self.try_add_reader(path, reader))
    }

    fn try_add_reader(&self, path: &str, reader: &mut dyn Read) -> Result<FileStats> {
        split(path)?;
        let mut scratch = Scratch::new(self.options.zstd_level)?;
        let mut stats = FileStats::default();
        let mut content = Vec::new();
        let mut chunk = Vec::new();
        loop {
            self.control.check()?;
            chunk.clear();
            let part = (&mut *reader)
                .take(FILE_CHUNK_BYTES as u64)
                .read_to_end(&mut chunk);
            part.map_err(|source| Error::Source {
                path: path.to_owned(),
                offset_bytes: stats.bytes_read,
                source,
            })?;
            if chunk.is_empty() {
                break;
            }
            let id = Id::of(&chunk);
            let stored = self
                .writer
                .store(BlobKind::Data, id, &chunk, &mut scratch)?;
            stats.count(chunk.len(), stored);
            stats.bytes_read += chunk.len() as u64;
            content.push(id);
        }
        stats.bytes_total = stats.bytes_read;
        self.insert(path, |name| Node::file(name, stats.bytes_total, content))?;
        Ok(stats)
    }

    /// Stores an image as a folder of segments at an absolute path of the snapshot; joined in
    /// the order of their paths they are the image.
    ///
    /// # Errors
    /// [`Error::InvalidPath`], [`Error::InvalidOption`]; [`Error::Source`] for any read error;
    /// [`Error::Cancelled`]; whatever the store says.
    pub fn add_image(
        &self,
        dir: &str,
        source: &dyn ImageSource,
        opts: &ImageOptions,
        progress: &dyn Progress,
    ) -> Result<ImageStats> {
        self.control.check()?;
        self.control
            .watch(self.try_add_image(dir, source, opts, progress))
    }

    fn try_add_image(
        &self,
        dir: &str,
        source: &dyn ImageSource,
        opts: &ImageOptions,
        progress: &dyn Progress,
    ) -> Result<ImageStats> {
        split(dir)?;
        let context = image_ingest::Context {
            path: dir,
            writer: &self.writer,
            control: &self.control,
            lanes: self.options.lanes,
            zstd_level: self.options.zstd_level,
        };
        let (subtree, stats) = image_ingest::ingest(&context, source, opts, progress)?;
        self.insert(dir, |name| Node::folder(name, subtree))?;
        Ok(stats)
    }

    fn insert(&self, path: &str, make: impl FnOnce(&str) -> Node) -> Result<()> {
        self.tree
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path, make)
    }

    /// Writes what is still open, then the index, then the snapshot; releases the lock.
    ///
    /// # Errors
    /// Whatever ended the backup before; [`Error::LockLost`]; whatever the store says. No
    /// snapshot is there then.
    pub fn finish(self, meta: SnapshotMeta) -> Result<Snapshot> {
        self.control.check()?;
        let tree = std::mem::take(&mut *self.tree.lock().unwrap_or_else(PoisonError::into_inner));
        let mut scratch = Scratch::new(self.options.zstd_level)?;
        let root = tree.store(&self.writer, &mut scratch)?;
        self.writer.flush()?;
        let file = SnapshotFile::new(meta, root)?;
        let stored = unpacked::encode(&self.sealer, &file)?;
        self.lock.check_held()?;
        let id = self.writer.uploads.write_file(Kind::Snapshot, stored)?;
        Ok(file.into_snapshot(id))
    }

    /// The way in for blobs, for a copy.
    pub(crate) fn writer(&self) -> &BlobWriter {
        &self.writer
    }

    /// Writes the snapshot of a copy once all its blobs are there. More may follow.
    pub(crate) fn write_copy(&self, file: &SnapshotFile) -> Result<Id> {
        self.writer.flush()?;
        let stored = unpacked::encode(&self.sealer, file)?;
        self.lock.check_held()?;
        self.writer.uploads.write_file(Kind::Snapshot, stored)
    }

    /// Ends the backup without a snapshot and releases the lock. What was stored and indexed
    /// already serves the next backup; the rest goes at the next prune.
    pub fn abort(self) {}
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.control.cancel();
    }
}
