//! Stores: where the objects of a repository live.
//!
//! A store knows nothing of what is inside an object. Objects are written once, under the name
//! of their hash, and never change; so a write either publishes the whole object or nothing.

mod local;
mod s3;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use time::OffsetDateTime;

pub use local::LocalStore;
pub(crate) use s3::S3Place;
pub use s3::{Patience, S3Files, S3Store};

use crate::id::Id;

/// The kinds of objects in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The one configuration file.
    Config,
    /// A master key, sealed by a password.
    Key,
    /// A lock.
    Lock,
    /// A snapshot.
    Snapshot,
    /// A part of the index: which blob is where.
    Index,
    /// A pack of blobs.
    Pack,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Config,
        Self::Key,
        Self::Lock,
        Self::Snapshot,
        Self::Index,
        Self::Pack,
    ];

    /// Folder (for the configuration: file) relative to the repository.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "keys",
            Self::Lock => "locks",
            Self::Snapshot => "snapshots",
            Self::Index => "index",
            Self::Pack => "data",
        }
    }
}

/// The name of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName {
    /// Its kind.
    pub kind: Kind,
    /// Its id; the configuration has none and uses zeros.
    pub id: Id,
}

impl FileName {
    /// Names an object.
    #[must_use]
    pub const fn new(kind: Kind, id: Id) -> Self {
        Self { kind, id }
    }

    /// The configuration file.
    pub const CONFIG: Self = Self::new(Kind::Config, Id::from_bytes([0; 32]));

    /// Path relative to the repository, as restic lays it out.
    #[must_use]
    pub fn path(&self) -> String {
        let hex = self.id.to_hex();
        match self.kind {
            Kind::Config => "config".to_owned(),
            Kind::Pack => format!("data/{}/{hex}", &hex[..2]),
            kind => format!("{}/{hex}", kind.folder()),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// One object as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its id.
    pub id: Id,
    /// Its length.
    pub size_bytes: u64,
}

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Once it is true, a store on the network tries nothing again, and ends soon what runs. What
    /// tidies up still works where the service answers.
    pub cancel: Option<Arc<AtomicBool>>,
    /// How long a store on the network waits.
    pub patience: Patience,
    /// How long each object that is written shall be locked, where the place can (S3 with object lock).
    /// Locks of the repository are not.
    pub retain: Option<Duration>,
    /// Show what was there at this time, and change nothing: S3 with versions.
    pub as_of: Option<OffsetDateTime>,
    /// Variables in place of this process's environment.
    pub environment: Option<HashMap<String, String>>,
}

/// A place for objects. All calls may come from many threads at once.
pub trait Store: Send + Sync {
    /// The place in words, for messages.
    fn location(&self) -> String;

    /// Makes what an empty repository needs (folders). Does nothing where it is there.
    ///
    /// # Errors
    /// When the place cannot be made.
    fn create(&self) -> io::Result<()>;

    /// Lists the objects of a kind; names that are no ids are left out. The configuration is
    /// listed with its zero id. A missing folder is an empty list.
    ///
    /// # Errors
    /// When the listing is not complete.
    fn list(&self, kind: Kind) -> io::Result<Vec<StoredFile>>;

    /// Reads a whole object.
    ///
    /// # Errors
    /// `NotFound`; `FileTooLarge` when it is longer than `max_bytes`; any other failure.
    fn read_full(&self, file: &FileName, max_bytes: u64) -> io::Result<Vec<u8>>;

    /// Fills `buf` from `offset_bytes`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the object is too short; any other failure.
    fn read_range(&self, file: &FileName, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Publishes an object: after `Ok` all of it is durable; after an error, or a crash, either
    /// all of it or nothing is visible. The configuration is never replaced (`AlreadyExists`).
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn write(&self, file: &FileName, data: &[u8]) -> io::Result<()>;

    /// Removes an object. Removing what is not there is fine.
    ///
    /// # Errors
    /// When it may still be there.
    fn remove(&self, file: &FileName) -> io::Result<()>;

    /// Locks an object for as long as one that is written now, counted from now.
    ///
    /// # Errors
    /// `Unsupported` where the place locks nothing, or was not asked to.
    fn retain(&self, _file: &FileName) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How long a new object may stay invisible to others' listings; lock taking waits for it.
    fn listing_delay(&self) -> Duration {
        Duration::from_millis(200)
    }
}
