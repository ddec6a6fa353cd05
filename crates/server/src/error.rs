//! What can go wrong between two nodes.

use std::net::SocketAddr;

/// What can go wrong between two nodes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key cannot be made or read.
    #[error("the certificate or key is not usable")]
    Certificate(#[source] rcgen::Error),
    /// A certificate or key file is not what it should be.
    #[error("{what} is not valid PEM of the expected kind")]
    Pem {
        /// Which one.
        what: &'static str,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// A certificate is not the one that it should be.
    #[error("the certificate is not one that the cluster's authority made for this node")]
    Forged(#[source] rustls::Error),
    /// The text is no join token.
    #[error("this is no join token; copy all of what `vmtwin cluster token` printed")]
    Token,
    /// The system gave no random numbers.
    #[error("the system gave no random numbers: {0}")]
    Random(getrandom::Error),
    /// The port cannot be listened at.
    #[error("cannot listen at {address}; is another agent running there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The node cannot be reached, or is not the one that was expected.
    #[error("{address} cannot be reached")]
    Connect {
        /// Where.
        address: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Who answers shows a certificate that was taken back, or that nobody noted.
    #[error(
        "{address} shows a certificate that does not count in the cluster (any more), so that it was sent \
         nothing; see there: vmtwin doctor"
    )]
    Revoked {
        /// Where.
        address: String,
    },
    /// Whether the certificate of who answers counts cannot be told.
    #[error(
        "whether the certificate of {address} counts cannot be looked up, so that it was sent nothing"
    )]
    NotLookedUp {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The conversation broke off.
    #[error("the conversation with {address} broke off")]
    Http {
        /// With whom.
        address: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// A time limit has passed.
    #[error("{address} did not answer within {seconds} s")]
    TimedOut {
        /// Who.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// The node answers with an error.
    #[error("{address} answers {status}: {detail}")]
    Refused {
        /// Who.
        address: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        detail: String,
    },
    /// An answer has more bytes than it may.
    #[error("the answer of {address} has more than {max_bytes} bytes")]
    TooLarge {
        /// Who.
        address: String,
        /// The limit.
        max_bytes: u64,
    },
}

impl Error {
    /// Whether the same request may succeed later: the node is away or busy, and did not refuse.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.kind() != std::io::ErrorKind::InvalidData,
            Self::NotLookedUp { .. } | Self::Http { .. } | Self::TimedOut { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
