//! What can go wrong in a delivery. No text holds a secret: of a URL only the host is named.

use std::path::PathBuf;

/// An error of a delivery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file with a secret or a URL.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds something else.
    #[error("{} {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A URL that cannot be used.
    #[error("{what} {why}")]
    BadUrl {
        /// Which URL.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An address that is none.
    #[error("{address:?} is no mail address such as admin@example.net")]
    BadAddress {
        /// The text.
        address: String,
    },
    /// The server was not reached, or did not answer in time.
    #[error("{host} cannot be reached: {why}")]
    Unreached {
        /// The server.
        host: String,
        /// Why.
        why: String,
    },
    /// The server answered that it will not.
    #[error("{host} answered {status}")]
    Refused {
        /// The server.
        host: String,
        /// The status, and its reason.
        status: String,
    },
    /// A mail without a reader.
    #[error("a mail needs a reader")]
    Mail(#[source] lettre::error::Error),
    /// The mail could not be made.
    #[error("the mail cannot be made")]
    Text(#[source] std::io::Error),
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} ended with {how}{said}")]
    Failed {
        /// Its name.
        program: String,
        /// Exit code or signal.
        how: String,
        /// The last line it said, after a colon, if it said any.
        said: String,
    },
    /// A program took too long.
    #[error("{program} was ended after {seconds} s")]
    TimedOut {
        /// Its name.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// No random numbers.
    #[error("no random numbers from the system")]
    Random,
}

/// Outcome of a delivery.
pub type Result<T, E = Error> = std::result::Result<T, E>;
