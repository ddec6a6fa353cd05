//! A repository: made or opened with a password, then read, written and tidied.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::backup::Backup;
use crate::blob_reader::BlobReader;
use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::index::Index;
use crate::index_cache::IndexCache;
use crate::location::Location;
use crate::lock::{self, LockGuard, LockInfo, LockMode};
use crate::options::IngestOptions;
use crate::password::Password;
use crate::reader::SnapshotReader;
use crate::rustic::{self, Opened};
use crate::snapshot::{DamagedSnapshot, Snapshot, SnapshotFile, SnapshotList};
use crate::store::{FileName, Kind, Store, StoreOptions};
use crate::unpacked;

/// The version of the format that we write.
const VERSION: u32 = 2;
/// Most keys that are tried; each takes scrypt's time.
const MAX_KEYS: usize = 32;

/// Threads that read snapshots.
const SNAPSHOT_LOADERS: usize = 8;

/// The part of the configuration that matters here.
#[derive(Deserialize)]
struct Config {
    version: u32,
    id: Id,
}

/// An open repository. Cheap to clone; all clones share the store.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    id: Id,
    cache: Option<IndexCache>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; whatever the store says.
    pub fn init(location: &Location, password: &Password) -> Result<Self> {
        Self::init_with(location.store(&StoreOptions::default())?, password)
    }

    /// Makes a repository on any store.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub fn init_with(store: Arc<dyn Store>, password: &Password) -> Result<Self> {
        refuse_existing(&*store)?;
        remove_unfinished(&*store)?;
        let made = rustic::init(Arc::clone(&store), password)?;
        if !list(&*store, Kind::Key)?.contains(&made.key_file) {
            let reason = "somebody else made a repository here at the same time";
            return Err(Error::damaged("keys", reason));
        }
        Ok(Self {
            store,
            sealer: Arc::new(made.sealer),
            id: made.id,
            cache: None,
        })
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`Error::NotARepository`], [`Error::WrongPassword`], [`Error::Unsupported`] for another
    /// version of the format, [`Error::Damaged`], whatever the store says.
    pub fn open(location: &Location, password: &Password) -> Result<Self> {
        Self::open_with(location.store(&StoreOptions::default())?, password)
    }

    /// Opens a repository on any store.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(store: Arc<dyn Store>, password: &Password) -> Result<Self> {
        let missing = |reason: &str| Error::NotARepository {
            location: store.location(),
            reason: reason.to_owned(),
        };
        if list(&*store, Kind::Config)?.is_empty() {
            return Err(missing("it has no configuration file"));
        }
        let keys = list(&*store, Kind::Key)?;
        if keys.is_empty() {
            return Err(missing("it has no keys"));
        }
        let (sealer, config) = open_any_key(&*store, &keys, password)?;
        if config.version != VERSION {
            return Err(Error::Unsupported {
                what: format!(
                    "format version {}; only {VERSION} is supported",
                    config.version
                ),
            });
        }
        Ok(Self {
            store,
            sealer: Arc::new(*sealer),
            id: config.id,
            cache: None,
        })
    }

    /// Keeps copies of the index in a folder of this repository's own below `folder`, which is made
    /// when it is needed. They hold ids and places of blobs, sealed by the repository's keys, and may
    /// be removed at any time.
    #[must_use]
    pub fn with_cache(mut self, folder: &Path) -> Self {
        self.cache = Some(IndexCache::new(folder.join(self.id())));
        self
    }

    /// Id of the repository, 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        self.id.to_hex()
    }

    /// Starts a backup: takes a shared lock, then loads the index.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::InvalidOption`], [`Error::Damaged`], whatever the store says.
    pub fn start_backup(&self, opts: &IngestOptions) -> Result<Backup> {
        Backup::start(self, opts)
    }

    /// All snapshots, oldest first, and those that do not open.
    ///
    /// # Errors
    /// When the store cannot list; a snapshot that cannot be read is in the answer.
    pub fn snapshots(&self) -> Result<SnapshotList> {
        let mut found = SnapshotList {
            snapshots: Vec::new(),
            damaged: Vec::new(),
        };
        for (id, loaded) in self.load_snapshots(&list(&*self.store, Kind::Snapshot)?) {
            match loaded {
                Ok(snapshot) => found.snapshots.push(snapshot),
                Err(error) => found.damaged.push(DamagedSnapshot {
                    id: id.to_hex(),
                    error,
                }),
            }
        }
        found
            .snapshots
            .sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Ok(found)
    }

    /// One snapshot by its id, the beginning of its id, or `latest`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::Damaged`]. `latest` also fails when
    /// any snapshot does not open, because that one may be the latest.
    pub fn snapshot(&self, id_or_prefix: &str) -> Result<Snapshot> {
        let not_found = || Error::NotFound {
            what: format!("snapshot {id_or_prefix:?}"),
        };
        if id_or_prefix == "latest" {
            let mut found = self.snapshots()?;
            return match found.damaged.pop() {
                Some(damaged) => Err(damaged.error),
                None => found.snapshots.pop().ok_or_else(not_found),
            };
        }
        if id_or_prefix.is_empty() {
            return Err(not_found());
        }
        let mut ids = list(&*self.store, Kind::Snapshot)?;
        ids.retain(|id| id.to_hex().starts_with(id_or_prefix));
        match ids[..] {
            [] => Err(not_found()),
            [id] => self.load_snapshot(id),
            _ => Err(Error::Ambiguous {
                prefix: id_or_prefix.to_owned(),
                count: ids.len(),
            }),
        }
    }

    /// Loads by a few threads, since a store on the network takes its time for each.
    fn load_snapshots(&self, ids: &[Id]) -> Vec<(Id, Result<Snapshot>)> {
        let share = ids.len().div_ceil(SNAPSHOT_LOADERS).max(1);
        let load = |ids: &[Id]| -> Vec<(Id, Result<Snapshot>)> {
            let loaded = ids.iter().map(|id| (*id, self.load_snapshot(*id)));
            loaded.collect()
        };
        std::thread::scope(|scope| {
            let shares = ids.chunks(share);
            let threads: Vec<_> = shares.map(|ids| scope.spawn(|| load(ids))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|e| std::panic::resume_unwind(e))
            };
            threads.into_iter().flat_map(join).collect()
        })
    }

    fn load_snapshot(&self, id: Id) -> Result<Snapshot> {
        let name = FileName::new(Kind::Snapshot, id);
        let file: SnapshotFile = unpacked::load(&*self.store, &self.sealer, &name)?;
        Ok(file.into_snapshot(id))
    }

    /// Removes a snapshot, under an exclusive lock. Its data goes at the next prune.
    ///
    /// # Errors
    /// [`Error::NotFound`] unless `id` is the full id of a snapshot; [`Error::Locked`].
    pub fn remove_snapshot(&self, id: &str) -> Result<()> {
        let not_found = || Error::NotFound {
            what: format!("snapshot {id:?}"),
        };
        let wanted: Id = id.parse().map_err(|_| not_found())?;
        let lock = self.lock(LockMode::Exclusive)?;
        if !list(&*self.store, Kind::Snapshot)?.contains(&wanted) {
            return Err(not_found());
        }
        let name = FileName::new(Kind::Snapshot, wanted);
        lock.check_held()?;
        self.store
            .remove(&name)
            .map_err(|e| Error::store("remove", name, e))
    }

    /// Removes snapshots, also damaged ones, under one exclusive lock. Their data goes at the
    /// next prune. What is not there any more is passed over.
    ///
    /// # Errors
    /// [`Error::NotFound`] for what is no full id, before anything is removed; [`Error::Locked`];
    /// [`Error::LockLost`]; whatever the store says.
    pub fn remove_snapshots(&self, ids: &[String]) -> Result<()> {
        let parse = |id: &String| {
            let what = format!("snapshot {id:?}");
            id.parse::<Id>().map_err(|_| Error::NotFound { what })
        };
        let ids: Vec<Id> = ids.iter().map(parse).collect::<Result<_>>()?;
        let lock = self.lock(LockMode::Exclusive)?;
        for some in ids.chunks(64) {
            lock.check_held()?;
            for id in some {
                self.remove_file(&FileName::new(Kind::Snapshot, *id))?;
            }
        }
        Ok(())
    }

    /// Opens a snapshot for reading: takes a shared lock, then loads the index.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Damaged`], whatever the store says.
    pub fn reader(&self, snapshot: &Snapshot) -> Result<SnapshotReader> {
        let lock = self.lock(LockMode::Shared)?;
        let (store, sealer) = (Arc::clone(&self.store), Arc::clone(&self.sealer));
        let index = self.load_index(false)?;
        let blobs = Arc::new(BlobReader::new(
            store,
            sealer,
            Arc::new(index),
            Some(Arc::new(lock)),
        ));
        Ok(SnapshotReader::new(blobs, snapshot))
    }

    /// All locks, stale ones included.
    ///
    /// # Errors
    /// Whatever the store says; a lock that does not open is in the answer.
    pub fn locks(&self) -> Result<Vec<LockInfo>> {
        lock::list(&*self.store, &self.sealer)
    }

    /// Removes locks that are stale (not renewed for 30 minutes, or of a process of this host
    /// that is gone) or damaged; says how many.
    ///
    /// # Errors
    /// Whatever the store says.
    pub fn remove_stale_locks(&self) -> Result<usize> {
        lock::remove_stale(&*self.store, &self.sealer)
    }

    /// Holds a lock until the answer is dropped. For callers that run a tool of their own on
    /// the repository.
    ///
    /// # Errors
    /// [`Error::Locked`], whatever the store says.
    pub fn hold_lock(&self, mode: LockMode) -> Result<HeldLock> {
        self.lock(mode).map(HeldLock)
    }

    pub(crate) fn lock(&self, mode: LockMode) -> Result<LockGuard> {
        LockGuard::take(Arc::clone(&self.store), Arc::clone(&self.sealer), mode)
    }

    /// Loads the index. With `trust_nothing` only blobs whose packs are there are found.
    pub(crate) fn load_index(&self, trust_nothing: bool) -> Result<Index> {
        Index::load(
            &*self.store,
            &self.sealer,
            self.cache.as_ref(),
            trust_nothing,
        )
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(crate) fn store_arc(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    pub(crate) fn sealer_arc(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer)
    }

    pub(crate) fn remove_file(&self, name: &FileName) -> Result<()> {
        let removed = self.store.remove(name);
        removed.map_err(|e| Error::store("remove", name, e))
    }
}

/// A lock held for a caller; dropping it releases it.
pub struct HeldLock(LockGuard);

impl HeldLock {
    /// Fails if somebody may have taken the holder for dead.
    ///
    /// # Errors
    /// [`Error::LockLost`], whatever the store says.
    pub fn check_held(&self) -> Result<()> {
        self.0.check_held()
    }
}

impl std::fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HeldLock").field(&self.0.first_id()).finish()
    }
}

fn list(store: &dyn Store, kind: Kind) -> Result<Vec<Id>> {
    let files = store
        .list(kind)
        .map_err(|e| Error::store("list", kind.folder(), e))?;
    Ok(files.into_iter().map(|file| file.id).collect())
}

/// Refuses where a configuration is, and where data is without one: it may be somebody's only
/// copy, which a new key would make look openable.
fn refuse_existing(store: &dyn Store) -> Result<()> {
    if !list(store, Kind::Config)?.is_empty() {
        return Err(Error::AlreadyExists {
            location: store.location(),
        });
    }
    for kind in [Kind::Snapshot, Kind::Index, Kind::Pack] {
        if !list(store, kind)?.is_empty() {
            let reason = "it is missing, but the repository holds data";
            return Err(Error::damaged("config", reason));
        }
    }
    Ok(())
}

/// Removes keys of an `init` that did not get to its configuration: they open nothing.
fn remove_unfinished(store: &dyn Store) -> Result<()> {
    for id in list(store, Kind::Key)? {
        let name = FileName::new(Kind::Key, id);
        store
            .remove(&name)
            .map_err(|e| Error::store("remove", name, e))?;
    }
    Ok(())
}

/// Tries the password on every key. A damaged key only matters when no other opens.
fn open_any_key(
    store: &dyn Store,
    keys: &[Id],
    password: &Password,
) -> Result<(Box<Sealer>, Config)> {
    let stored = unpacked::read_stored(store, &FileName::CONFIG)?;
    let mut damaged = None;
    for id in keys.iter().take(MAX_KEYS) {
        match open_key(store, *id, password) {
            Ok(Opened::WrongPassword) => {}
            Ok(Opened::Key(sealer)) => {
                let config = unpacked::decode(&sealer, &FileName::CONFIG, stored.clone());
                match config {
                    Ok(config) => return Ok((sealer, config)),
                    Err(error) => damaged = Some(error),
                }
            }
            Err(error @ Error::Store { .. }) => return Err(error),
            Err(error) => damaged = Some(error),
        }
    }
    Err(damaged.unwrap_or(Error::WrongPassword))
}

fn open_key(store: &dyn Store, id: Id, password: &Password) -> Result<Opened> {
    let name = FileName::new(Kind::Key, id);
    let data = unpacked::read_stored(store, &name)?;
    if Id::of(&data) != id {
        return Err(Error::damaged(
            name,
            "its content does not have the hash it is named by",
        ));
    }
    rustic::open_key(&name, &data, password)
}
