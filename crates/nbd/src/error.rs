//! What can go wrong on a connection.

use std::{io, path::PathBuf, time::Duration};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be reached.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke. It cannot be used again.
    #[error("the NBD connection broke")]
    Io(#[source] io::Error),
    /// The server did not answer in time. The connection cannot be used again.
    #[error("the NBD server did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// The server broke the protocol. The connection cannot be used again.
    #[error("the NBD server broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The connection was given up before, for this reason.
    #[error("the NBD connection is closed: {reason}")]
    Closed {
        /// The first error.
        reason: String,
    },
    /// The server refused the export or an option.
    #[error("the NBD server refused {what}: {reason} {message}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Meaning of the refusal's code.
        reason: &'static str,
        /// The server's own words, perhaps empty.
        message: String,
    },
    /// The server could not carry out a request. The connection stays usable.
    #[error("{command} of {len_bytes} bytes at {offset} failed: {} (code {code}) {message}",
            crate::wire::error_name(*code))]
    Server {
        /// What was asked for.
        command: &'static str,
        /// First byte of the request.
        offset: u64,
        /// Length of the request, in bytes.
        len_bytes: u64,
        /// Error number of the protocol, like Linux' errno.
        code: u32,
        /// The server's own words, perhaps empty.
        message: String,
    },
    /// The request passes the end of the export. Nothing was sent.
    #[error("{len_bytes} bytes at {offset} pass the end of the export of {size_bytes} bytes")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Length of the request, in bytes.
        len_bytes: u64,
        /// Size of the export, in bytes.
        size_bytes: u64,
    },
    /// The export does not offer this. Nothing was sent.
    #[error("the NBD export does not offer {what}")]
    NotOffered {
        /// A command or a metadata context.
        what: String,
    },
}

impl Error {
    /// Whether the connection still works after this error.
    #[must_use]
    pub fn is_connection_usable(&self) -> bool {
        matches!(
            self,
            Self::Server { .. } | Self::OutOfRange { .. } | Self::NotOffered { .. }
        )
    }

    pub(crate) fn protocol(what: &'static str) -> Self {
        Self::Protocol { what }
    }
}
