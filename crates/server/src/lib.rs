//! HTTP between the nodes of a cluster: a server, a client, and the authority both trust.
//!
//! | file | holds |
//! |---|---|
//! | `authority.rs` | the cluster's own authority: makes itself, signs certificates of nodes |
//! | `token.rs` | the text that lets a host join once |
//! | `tls.rs` | what each side proves to the other |
//! | `listen.rs` | the server: limits, who asks, a graceful end |
//! | `client.rs` | requests to one node, answers as streams |
//! | `problem.rs` | errors as RFC 9457 documents |
//!
//! It knows nothing of catalogs, documents or backups: what is served is a router that it is given,
//! and whether a certificate still counts is asked of others.

mod authority;
mod client;
mod error;
mod listen;
mod problem;
mod tls;
mod token;

pub use authority::{Authority, Certificate, CertificateRequest, NodeKey};
pub use client::{Answer, Client};
pub use error::{Error, Result};
pub use listen::{Limits, Listener, PeerAddress};
pub use problem::Problem;
pub use tls::{Credentials, PeerCertificate, PeerName, ServerCertificate, node_host};
pub use token::{JoinToken, TokenSecret};

/// SHA-256 as lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
