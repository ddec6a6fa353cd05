//! Everything that can go wrong here, as one enum that callers match on.
//!
//! The text of an error says what happened and, where there is something to do, what to do;
//! it leaves out its source, which the edge of the program prints as a chain.

use std::io;

use time::OffsetDateTime;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no location this version can open.
    #[error("cannot use {text:?} as a repository location: {reason}")]
    Location {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },

    /// `init` found a repository.
    #[error("a repository already exists at {location}")]
    AlreadyExists {
        /// Where.
        location: String,
    },

    /// The place holds no repository.
    #[error("there is no repository at {location}: {reason}")]
    NotARepository {
        /// Where.
        location: String,
        /// What is missing.
        reason: String,
    },

    /// No key of the repository opens with the password.
    #[error("wrong password: no key of the repository opens with it")]
    WrongPassword,

    /// The repository uses something this version does not know.
    #[error("unsupported repository: {what}")]
    Unsupported {
        /// What is not known.
        what: String,
    },

    /// Somebody else holds a lock that excludes ours.
    #[error(
        "the repository is locked by {hostname} (pid {pid}, {username}) since {since}{}; \
         wait for it to end, or remove stale locks if that process is gone",
        if *.exclusive { ", exclusively" } else { "" }
    )]
    Locked {
        /// Id of the lock, 64 hexadecimal digits.
        id: String,
        /// Host that wrote the lock.
        hostname: String,
        /// User that wrote the lock.
        username: String,
        /// Process that wrote the lock.
        pid: u32,
        /// When the lock was last refreshed.
        since: OffsetDateTime,
        /// Whether it excludes everybody (else only those that want to exclude).
        exclusive: bool,
    },

    /// Our lock was removed or could not be refreshed, so others may have removed our data.
    #[error("the repository lock was lost: {reason}; run the operation again")]
    LockLost {
        /// How it was lost.
        reason: String,
    },

    /// The store failed to read or write.
    #[error("cannot {action} {file}")]
    Store {
        /// What was tried: "read", "write", "list", "remove".
        action: &'static str,
        /// The object, relative to the repository.
        file: String,
        /// The store's answer.
        source: io::Error,
    },

    /// An object of the repository is not what it must be.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// The object.
        file: String,
        /// What is wrong.
        reason: String,
    },

    /// No snapshot or path of that name.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },

    /// A prefix that fits several snapshots.
    #[error("{prefix:?} fits {count} snapshots; give more digits")]
    Ambiguous {
        /// The prefix as given.
        prefix: String,
        /// How many fit.
        count: usize,
    },

    /// A path that cannot be put into or looked up in a snapshot.
    #[error("cannot use path {path:?}: {reason}")]
    InvalidPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An option is out of its range.
    #[error("invalid option: {reason}")]
    InvalidOption {
        /// Which, and its range.
        reason: String,
    },

    /// A file is longer than the caller allowed.
    #[error("{path:?} holds {size_bytes} bytes, more than the {limit_bytes} allowed here")]
    TooLarge {
        /// The path in the snapshot.
        path: String,
        /// Its length.
        size_bytes: u64,
        /// The caller's limit.
        limit_bytes: u64,
    },

    /// The source of a backup failed to read; a backup with a hole in it is no backup.
    #[error("cannot read the source of {path:?} at byte {offset_bytes}")]
    Source {
        /// The path in the snapshot.
        path: String,
        /// Where in the source.
        offset_bytes: u64,
        /// The source's answer.
        source: io::Error,
    },

    /// The target of a restore failed to write.
    #[error("cannot write the target at byte {offset_bytes}")]
    Sink {
        /// Where in the target.
        offset_bytes: u64,
        /// The target's answer.
        source: io::Error,
    },

    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,

    /// An earlier error ended this backup; that error was reported where it happened.
    #[error("the backup already failed")]
    AlreadyFailed,

    /// The operating system refused a thread, randomness or the like.
    #[error("the operating system refused {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn damaged(file: impl ToString, reason: impl ToString) -> Self {
        Self::Damaged {
            file: file.to_string(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn store(action: &'static str, file: impl ToString, source: io::Error) -> Self {
        Self::Store {
            action,
            file: file.to_string(),
            source,
        }
    }
}
