//! Repository in restic format version 2: ingest, random read, locks.
//!
//! Knows nothing of virtual machines: it stores files and images (long, sparse, seekable) as
//! snapshots, in parallel, deduplicated, compressed and encrypted, so that stock `restic` can
//! check, list, restore and prune what is written here. Everything is synchronous.
//!
//! ```text
//! Repository ── start_backup ─► Backup ── add_image, add_reader, add_bytes ─► finish ─► Snapshot
//!     │                            └ lanes: read → zero test → hash → dedupe → compress → seal
//!     │                                              → pack → uploaders ─► Store
//!     └──────── reader ───────► SnapshotReader ── open_image ─► Image: read_at, copy_to
//! ```
//!
//! On the store (all names but `config` are the SHA-256 of the content):
//!
//! | object | form |
//! |---|---|
//! | `config` | `seal(json)` |
//! | `keys/*` | JSON; the master keys sealed by scrypt of a password |
//! | `locks/*`, `snapshots/*`, `index/*` | `seal(0x02 ‖ zstd(json))` |
//! | `data/xx/*` | packs: sealed blobs, sealed header, length of the header |
//!
//! What may run beside what: backups and readers take shared locks and run beside one another;
//! removing snapshots, the end of a prune, and `restic prune`, take an exclusive one and run
//! alone. The table of all of it is in `docs/repository.md`.
//!
//! An image is a folder of segments; see the module `layout` for their names. Chunks of zeros
//! cost one blob per length and are never read, hashed or written again.

mod backup;
mod blob_reader;
mod blob_writer;
mod buffers;
mod cache;
mod compress;
mod control;
mod copy;
mod crypto;
mod error;
pub mod faulty;
#[doc(hidden)]
pub mod fuzzing;
mod go_quote;
mod host;
mod id;
mod image;
mod image_ingest;
mod image_source;
mod image_trees;
mod index;
mod index_cache;
mod index_file;
mod index_table;
mod layout;
mod location;
mod lock;
mod options;
mod pack;
mod parent;
mod password;
mod plan;
mod reader;
mod repository;
mod rustic;
mod sealed_stream;
mod snapshot;
mod sparse_file;
mod stats;
mod store;
#[doc(hidden)]
pub mod synthetic;
mod tree;
mod tree_builder;
mod unpacked;
mod upkeep;
mod upload;
mod zero;

pub use backup::Backup;
pub use error::{Error, Result};
pub use id::{Id, NotAnId};
pub use image::Image;
pub use image_source::{
    Extent, ExtentKind, ImageSink, ImageSource, NoProgress, Progress, ProgressDelta,
};
pub use location::Location;
pub use lock::{LockInfo, LockMode};
pub use options::{ImageOptions, IngestOptions};
pub use parent::ParentImage;
pub use password::Password;
pub use reader::{Entry, EntryKind, SnapshotReader};
pub use repository::{HeldLock, Repository};
pub use snapshot::{DamagedSnapshot, Snapshot, SnapshotList, SnapshotMeta};
pub use sparse_file::SparseFile;
pub use stats::{CopyStats, FileStats, ImageStats};
pub use store::{
    FileName, Kind, LocalStore, Patience, S3Files, S3Store, Store, StoreOptions, StoredFile,
};
pub use upkeep::check::{CheckReport, HurtSnapshot, Problem};
pub use upkeep::prune::{PruneOptions, PruneReport};
pub use upkeep::repair::RepairReport;
pub use upkeep::retention::KeepRules;
pub use upkeep::transfer::Copied;
pub use upkeep::usage::{SnapshotUsage, Usage};
