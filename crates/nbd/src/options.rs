//! How to connect.

use std::time::Duration;

/// How a [`crate::Client`] connects and how long it waits.
#[derive(Debug, Clone)]
pub struct Options {
    /// Metadata contexts to ask for, such as `base:allocation` or `qemu:dirty-bitmap:NAME`.
    /// The server may not have all of them: see [`crate::Client::has_context`]. Default none,
    /// at most 64.
    pub contexts: Vec<String>,
    /// Time for connecting and negotiating together. Default 10 s.
    pub connect_timeout: Duration,
    /// Time for one request, from sending to the last byte of the reply. Default 60 s.
    pub request_timeout: Duration,
    /// Largest piece to read or write at once, in bytes; less if the server takes less.
    /// Default 32 MiB.
    pub max_payload_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            max_payload_bytes: crate::wire::MAX_PAYLOAD,
        }
    }
}

impl Options {
    /// The defaults, with these metadata contexts.
    pub fn with_contexts<S: Into<String>>(contexts: impl IntoIterator<Item = S>) -> Self {
        Self {
            contexts: contexts.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}
