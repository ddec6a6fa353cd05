//! Locks, by restic's protocol, so that stock restic and we never harm one another.
//!
//! A lock is a small sealed file. Taking one: look for locks that exclude ours, write ours, wait
//! until others must see it, look again, and give up ours if there is one now. Two that race
//! both see the other in the second look, so at most both give up; never do both go on.
//! A background thread writes a new lock every five minutes and removes the old one; the lock
//! is stale after thirty. Backups and readers share; whoever removes data excludes everybody.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::crypto::Sealer;
use crate::error::{Error, Result};
use crate::host;
use crate::id::Id;
use crate::store::{FileName, Kind, Store};
use crate::unpacked;

/// How often a lock is renewed.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(30);
/// Age at which restic takes a lock for stale.
const STALE_AFTER: time::Duration = time::Duration::minutes(30);
/// Age at which we no longer rely on our own lock.
const DISTRUST_AFTER: time::Duration = time::Duration::minutes(25);
/// Longest wait for a store to remove our lock.
const RELEASE_WAIT: Duration = Duration::from_millis(500);
/// Attempts to remove our lock; the pauses between them double from a second.
const RELEASE_ATTEMPTS: u32 = 7;

/// Whether a lock lets others in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Others may share.
    Shared,
    /// Nobody else.
    Exclusive,
}

/// The JSON of a lock.
#[derive(Debug, Serialize, Deserialize)]
struct LockFile {
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
}

/// A lock as found in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockInfo {
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was last renewed. The epoch for a damaged lock.
    pub time: OffsetDateTime,
    /// Whether it excludes everybody.
    pub exclusive: bool,
    /// Host that wrote it.
    pub hostname: String,
    /// User that wrote it.
    pub username: String,
    /// Process that wrote it.
    pub pid: u32,
    /// Not renewed for 30 minutes, or of a process of this host that is gone.
    pub stale: bool,
    /// Why it does not open, if it does not.
    pub damaged: Option<String>,
}

impl LockInfo {
    fn new(id: Id, file: LockFile) -> Self {
        let age = OffsetDateTime::now_utc() - file.time;
        let gone = file.hostname == host::hostname() && host::process_is_gone(file.pid);
        Self {
            id: id.to_hex(),
            time: file.time,
            exclusive: file.exclusive,
            hostname: file.hostname,
            username: file.username,
            pid: file.pid,
            stale: age > STALE_AFTER || gone,
            damaged: None,
        }
    }

    fn damaged(id: Id, reason: String) -> Self {
        Self {
            id: id.to_hex(),
            time: OffsetDateTime::UNIX_EPOCH,
            exclusive: false,
            hostname: String::new(),
            username: String::new(),
            pid: 0,
            stale: false,
            damaged: Some(reason),
        }
    }

    fn into_error(self) -> Error {
        match self.damaged {
            Some(reason) => Error::Damaged {
                file: format!("locks/{}", self.id),
                reason: format!("{reason}; remove stale locks once nothing uses the repository"),
            },
            None => Error::Locked {
                id: self.id,
                hostname: self.hostname,
                username: self.username,
                pid: self.pid,
                since: self.time,
                exclusive: self.exclusive,
            },
        }
    }
}

/// Lists the locks of a repository.
pub(crate) fn list(store: &dyn Store, sealer: &Sealer) -> Result<Vec<LockInfo>> {
    let files = store
        .list(Kind::Lock)
        .map_err(|e| Error::store("list", "locks", e))?;
    let mut locks = Vec::new();
    for file in files {
        let name = FileName::new(Kind::Lock, file.id);
        match unpacked::load::<LockFile>(store, sealer, &name) {
            Ok(lock) => locks.push(LockInfo::new(file.id, lock)),
            Err(Error::Damaged { reason, .. }) => locks.push(LockInfo::damaged(file.id, reason)),
            // Released between the listing and now.
            Err(Error::Store { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(locks)
}

/// Removes locks that are stale or damaged; says how many.
pub(crate) fn remove_stale(store: &dyn Store, sealer: &Sealer) -> Result<usize> {
    let mut removed = 0;
    for lock in list(store, sealer)? {
        if lock.stale || lock.damaged.is_some() {
            let id = lock.id.parse().unwrap_or_default();
            let name = FileName::new(Kind::Lock, id);
            store
                .remove(&name)
                .map_err(|e| Error::store("remove", name, e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A lock that is held, and renewed, until it is dropped.
pub(crate) struct LockGuard {
    first: String,
    state: Arc<State>,
    stop: Option<Sender<()>>,
    released: Mutex<Receiver<()>>,
}

struct State {
    store: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    mode: LockMode,
    current: Mutex<(Id, OffsetDateTime)>,
}

impl State {
    fn current(&self) -> (Id, OffsetDateTime) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> Result<()> {
        let file = LockFile {
            time: OffsetDateTime::now_utc(),
            exclusive: self.mode == LockMode::Exclusive,
            hostname: host::hostname(),
            username: host::username(),
            pid: std::process::id(),
            uid: host::uid(),
            gid: host::gid(),
        };
        let stored = unpacked::encode(&self.sealer, &file)?;
        let name = FileName::new(Kind::Lock, Id::of(&stored));
        self.store
            .write(&name, &stored)
            .map_err(|e| Error::store("write", name, e))?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (name.id, file.time);
        Ok(())
    }

    fn remove(&self, id: Id) -> Result<()> {
        let name = FileName::new(Kind::Lock, id);
        self.store
            .remove(&name)
            .map_err(|e| Error::store("remove", name, e))
    }

    fn refresh(&self) -> Result<()> {
        let (old, _) = self.current();
        self.write()?;
        self.remove(old)
    }

    /// Fails on a lock of somebody else that ours cannot be beside.
    fn check_others(&self) -> Result<()> {
        let own = self.current().0.to_hex();
        let excludes = |lock: &LockInfo| {
            let both_share = !lock.exclusive && self.mode == LockMode::Shared;
            lock.id != own && (lock.damaged.is_some() || (!lock.stale && !both_share))
        };
        match list(&*self.store, &self.sealer)?.into_iter().find(excludes) {
            Some(lock) => Err(lock.into_error()),
            None => Ok(()),
        }
    }
}

impl LockGuard {
    /// Takes a lock, or says who has one that excludes it.
    pub(crate) fn take(store: Arc<dyn Store>, sealer: Arc<Sealer>, mode: LockMode) -> Result<Self> {
        let state = Arc::new(State {
            store,
            sealer,
            mode,
            current: Mutex::new((Id::default(), OffsetDateTime::UNIX_EPOCH)),
        });
        state.check_others()?;
        state.write()?;
        let (stop, stopped) = channel();
        let (release, released) = channel();
        let keeper = Arc::clone(&state);
        let guard = Self {
            first: state.current().0.to_hex(),
            state,
            stop: Some(stop),
            released: Mutex::new(released),
        };
        std::thread::Builder::new()
            .name("repository-lock".to_owned())
            .spawn(move || keep(&keeper, &stopped, &release))
            .map_err(|source| {
                // Without its thread nothing else removes it.
                let _ = guard.state.remove(guard.state.current().0);
                Error::System {
                    what: "a thread",
                    source,
                }
            })?;
        std::thread::sleep(guard.state.store.listing_delay());
        guard.state.check_others()?;
        Ok(guard)
    }

    /// Id of the lock when it was taken.
    pub(crate) fn first_id(&self) -> &str {
        &self.first
    }

    /// Id of the lock now.
    pub(crate) fn current_id(&self) -> String {
        self.state.current().0.to_hex()
    }

    /// Fails if somebody may have taken us for dead.
    pub(crate) fn check_held(&self) -> Result<()> {
        let lost = |reason: &str| Error::LockLost {
            reason: reason.to_owned(),
        };
        let (before, time) = self.state.current();
        if OffsetDateTime::now_utc() - time > DISTRUST_AFTER {
            return Err(lost("it could not be renewed in time"));
        }
        let files = self.state.store.list(Kind::Lock);
        let files = files.map_err(|e| Error::store("list", "locks", e))?;
        let (after, _) = self.state.current();
        if files.iter().any(|f| f.id == before || f.id == after) {
            Ok(())
        } else {
            Err(lost("somebody removed it"))
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.stop = None;
        // A store that hangs must not hold us; the thread goes on trying by itself.
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = released.recv_timeout(RELEASE_WAIT);
    }
}

/// Renews until the guard is dropped, then removes.
fn keep(state: &State, stopped: &Receiver<()>, release: &Sender<()>) {
    let mut pause = REFRESH;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = if state.refresh().is_ok() {
            REFRESH
        } else {
            RETRY
        };
    }
    let mut removed = state.remove(state.current().0);
    let _ = release.send(());
    // A lock that stays is stale in 30 minutes, or as soon as this process is gone.
    for attempt in 1..RELEASE_ATTEMPTS {
        if removed.is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_secs(1 << (attempt - 1)));
        removed = state.remove(state.current().0);
    }
}
