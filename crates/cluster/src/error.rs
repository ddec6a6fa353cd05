//! What can go wrong, and what to do next. `Display` leaves the source out.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no node may have.
    #[error(
        "{name:?} cannot be the name of a node: letters, digits, '-', '_' and '.', not first a \
         '.', at most {max} of them",
        max = crate::name::MAX_NAME_LEN
    )]
    NodeName {
        /// The name.
        name: String,
    },
    /// Two parts of one archive have the same name.
    #[error("the archive holds {entry} already")]
    Twice {
        /// The entry.
        entry: String,
    },
    /// A part is larger than an archive may hold.
    #[error("{entry} is larger than {max_bytes} bytes, which is more than an archive may hold")]
    TooLarge {
        /// The entry.
        entry: String,
        /// What it may have.
        max_bytes: u64,
    },
    /// The manifest does not fit the parts.
    #[error("the manifest does not fit the parts of the archive: {why}")]
    Manifest {
        /// Why not.
        why: String,
    },
    /// The archive's name is taken.
    #[error("{path} exists; nothing was written, choose another name")]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The file is no archive of ours, or not the one that was written.
    #[error("{path} is damaged or no archive of a cluster, and nothing of it was used: {why}")]
    BadArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The archive was written by a later version of the program.
    #[error("{path} is an archive of version {found}, this program knows versions up to {known}")]
    NewerArchive {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The configuration of a node is not what this program writes.
    #[error("the configuration of a node cannot be used: {why}")]
    BadNode {
        /// What is wrong.
        why: String,
    },
    /// The secrets of a node are not what this program writes.
    #[error("the secrets of a node cannot be used: {why}")]
    BadSecrets {
        /// What is wrong; nothing of what they are.
        why: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path} cannot be {what}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
