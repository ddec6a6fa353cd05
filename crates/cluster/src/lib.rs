//! The configuration of a cluster as one file: what every node is made of, and the shared database.
//!
//! | file | holds |
//! |---|---|
//! | `name.rs` | names of nodes, and of the entries of an archive |
//! | `manifest.rs` | what an archive says of itself |
//! | `node/` | the configuration of one node as XML, and the collector of its hardware |
//! | `plan/` | what a restore of a node would do, as a value; `--map` |
//! | `secrets.rs` | what the documents leave out, which is sealed apart |
//! | `fingerprint.rs` | whether a node's configuration is another one |
//! | `chain.rs` | from guests down to hardware |
//! | `xml.rs` | definitions as trees |
//! | `archive/write.rs` | parts that arrive in any order become one zip file |
//! | `archive/partial.rs` | the file meanwhile, and what others left of theirs |
//! | `archive/read.rs` | the way back, from a file that may come from anywhere |
//!
//! It knows nothing of repositories or catalogs: the copy of a database is a stream of bytes to it.

pub mod archive;
mod chain;
mod error;
mod fingerprint;
mod hash;
pub mod manifest;
mod name;
pub mod node;
pub mod plan;
pub mod secrets;
mod xml;

pub use archive::{Archive, Parts};
pub use chain::{Chain, chains};
pub use error::{Error, Result};
pub use manifest::Manifest;
pub use name::{EntryPath, NodeName};
pub use node::NodeDocument;
pub use secrets::NodeSecrets;
