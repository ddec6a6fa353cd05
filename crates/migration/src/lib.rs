//! QEMU migration stream: parse, index RAM pages, rebuild a stream.
//!
//! A capture of a guest's memory is a stream of sections. RAM comes first, framed in
//! pages in the order in which they were saved; the state of devices follows.
//!
//! ```text
//! header · configuration · RAM setup │ RAM pages, RAM pages, … │ devices · EOF · description
//! └──────────── head ──────────────┘                          └────────── tail ───────────┘
//! ```
//!
//! The order of pages differs in every capture, so the stream itself deduplicates badly.
//! [`StreamIndex::parse`] makes one pass and remembers where each page is; [`RamImage`] then
//! reads a RAM block as if it were a flat file, every page at its own fixed offset. Head and
//! tail are small and opaque. [`rebuild`] makes a stream of them again that QEMU loads.
//!
//! This crate knows nothing of QMP, of a repository or of files' names.

mod bytes;
mod cursor;
mod error;
mod head;
mod image;
mod index;
mod layout;
mod limits;
mod pages;
mod tail;
mod wire;
mod writer;

pub use bytes::{Bytes, FileBytes};
pub use error::{Error, RebuildError};
pub use image::{Extent, ExtentKind, RamImage, RamSource};
pub use index::StreamIndex;
pub use layout::{Layout, RamBlock};
pub use limits::Limits;
pub use pages::PageAt;
pub use writer::{Rebuilt, StreamWriter, rebuild};
