//! What is said over the serial port: frames, requests, and replies.
//!
//! A frame is its length in bytes (u32, little-endian; of all that follows), a byte that says what it
//! holds, and the content: a JSON document, or data of a file after its offset (u64, little-endian).
//! A request has one or more replies, the last of which is [`Reply::End`] or [`Reply::Error`].

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

/// Longest frame.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Most bytes of a file in a frame.
pub const DATA_BYTES: usize = 256 << 10;
/// Most folders within one another that are handed out.
pub const MAX_DEPTH: usize = 256;

const JSON: u8 = 1;
const DATA: u8 = 2;

/// A name or path in a foreign file system: bytes. In JSON a string where it is UTF-8, else an array
/// of its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "RawName", into = "RawName")]
pub struct Name(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RawName {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<RawName> for Name {
    fn from(raw: RawName) -> Name {
        match raw {
            RawName::Text(text) => Name(text.into_bytes()),
            RawName::Bytes(bytes) => Name(bytes),
        }
    }
}

impl From<Name> for RawName {
    fn from(name: Name) -> RawName {
        match String::from_utf8(name.0) {
            Ok(text) => RawName::Text(text),
            Err(error) => RawName::Bytes(error.into_bytes()),
        }
    }
}

impl Name {
    /// As the system's calls take it.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// Whether it names an entry of a folder, and nothing beyond it.
    #[must_use]
    pub fn is_entry(&self) -> bool {
        let bytes = self.0.as_slice();
        !matches!(bytes, b"" | b"." | b"..")
            && bytes.len() <= 255
            && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
    }
}

/// For people: what could move a terminal's cursor, or is no UTF-8, is escaped.
impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    c if c.is_control() || is_bidi(c) => write!(f, "{}", c.escape_default())?,
                    c => write!(f, "{c}")?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Marks that change the order in which other characters are shown.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What the host asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// All file systems: a [`Reply::FileSystem`] for each.
    FileSystems,
    /// The entry at a path and, if it is a folder, what is in it: a [`Reply::Entry`] for each.
    List {
        /// Number of the file system.
        file_system: usize,
        /// From its root; symbolic links stay below it.
        path: Name,
    },
    /// A file or folder with all it holds.
    Get {
        /// Number of the file system.
        file_system: usize,
        /// From its root; symbolic links stay below it.
        path: Name,
    },
}

/// What the machine answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The first words of the machine, unasked.
    Ready,
    /// A file system, in the order of their numbers.
    FileSystem(FileSystem),
    /// The entry asked for (the first), or one in the folder.
    Entry(Entry),
    /// A folder begins; what follows is in it.
    Enter(Entry),
    /// The folder that began last ends.
    Leave,
    /// A file begins: data follows in ascending order, what is between is zero.
    File(Entry),
    /// The file ends.
    FileEnd {
        /// Why not all of it could be read.
        error: Option<String>,
    },
    /// What is handed out may be older or less than what the guest had.
    Warning {
        /// Why.
        why: String,
    },
    /// A symbolic link.
    Link(Entry),
    /// An entry that is not handed out, or not all of it.
    Skipped {
        /// Its name in its folder.
        name: Name,
        /// Why.
        why: String,
    },
    /// All is said.
    End,
    /// It cannot be done.
    Error {
        /// Why.
        message: String,
    },
}

/// A file system on the disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Numbers of the disks that it is on.
    pub disks: Vec<usize>,
    /// `p1` (a partition), `whole` (all of a disk), `group/volume` (of LVM).
    pub name: String,
    /// Its type, as the kernel and `blkid` name it.
    pub kind: String,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// Length of what it is on.
    pub size_bytes: u64,
    /// Why files in it cannot be read, if they cannot.
    pub problem: Option<String>,
}

/// What an entry of a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, a socket, a device.
    Special,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: EntryKind,
    /// Length of a file.
    pub size_bytes: u64,
    /// Permissions (the lower 12 bits of `st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds from 1970 to the last change of the content.
    pub mtime_s: i64,
    /// Nanoseconds beyond them.
    pub mtime_ns: u32,
    /// Where a symbolic link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Name>,
}

/// A frame that was read.
#[derive(Debug)]
pub enum Frame<'a> {
    /// A JSON document.
    Json(&'a [u8]),
    /// Data of a file.
    Data {
        /// Where in the file.
        offset_bytes: u64,
        /// The bytes.
        data: &'a [u8],
    },
}

/// Writes a document as one frame.
///
/// # Errors
/// Those of `to`; [`io::ErrorKind::InvalidInput`] if it is too long.
pub fn write_json(to: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    let content = serde_json::to_vec(document)?;
    write_frame(to, JSON, &[&content])
}

/// Writes data of a file as one frame.
///
/// # Errors
/// Those of `to`; [`io::ErrorKind::InvalidInput`] if it is too long.
pub fn write_data(to: &mut impl Write, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
    write_frame(to, DATA, &[&offset_bytes.to_le_bytes(), data])
}

fn write_frame(to: &mut impl Write, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    if len > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a frame too long",
        ));
    }
    let mut frame = Vec::with_capacity(4 + len);
    frame.extend_from_slice(&(len as u32).to_le_bytes());
    frame.push(kind);
    for part in parts {
        frame.extend_from_slice(part);
    }
    to.write_all(&frame)
}

/// Reads a frame into `buffer`.
///
/// # Errors
/// Those of `from`; [`io::ErrorKind::InvalidData`] if it is no frame.
pub fn read_frame<'a>(from: &mut impl Read, buffer: &'a mut Vec<u8>) -> io::Result<Frame<'a>> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let len = u32::from_le_bytes(head) as usize;
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    if len == 0 || len > MAX_FRAME_BYTES {
        return Err(invalid("a frame of a wrong length"));
    }
    buffer.resize(len, 0);
    from.read_exact(buffer)?;
    match (buffer[0], &buffer[1..]) {
        (JSON, content) => Ok(Frame::Json(content)),
        (DATA, content) => match content.split_first_chunk::<8>() {
            Some((offset, data)) => Ok(Frame::Data {
                offset_bytes: u64::from_le_bytes(*offset),
                data,
            }),
            None => Err(invalid("a frame without its offset")),
        },
        _ => Err(invalid("a frame of an unknown kind")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_entries() {
        let entry = |bytes: &[u8]| Name(bytes.to_vec()).is_entry();
        for name in [&b"a"[..], b"...", b" ", b"\xff", &[b'n'; 255]] {
            assert!(entry(name), "{name:?}");
        }
        for name in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"a/b",
            b"../a",
            b"a\0",
            &[b'n'; 256],
        ] {
            assert!(!entry(name), "{name:?}");
        }
    }

    #[test]
    fn names_do_not_steer_a_terminal() {
        let shown = Name(b"a\x1b[2J\xff\n\xe2\x80\xae\xc3\xa4".to_vec()).to_string();
        assert_eq!(shown, "a\\u{1b}[2J\\xff\\n\\u{202e}ä");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(name: Vec<u8>, data: Vec<u8>, offset: u64) {
            let mut pipe = Vec::new();
            write_json(&mut pipe, &Name(name.clone())).unwrap();
            write_data(&mut pipe, offset, &data).unwrap();
            let (mut from, mut buffer) = (pipe.as_slice(), Vec::new());
            let Frame::Json(json) = read_frame(&mut from, &mut buffer).unwrap() else { panic!() };
            prop_assert_eq!(serde_json::from_slice::<Name>(json).unwrap().0, name);
            let Frame::Data { offset_bytes, data: read } = read_frame(&mut from, &mut buffer).unwrap()
                else { panic!() };
            prop_assert_eq!((offset_bytes, read), (offset, data.as_slice()));
        }

        #[test]
        fn anything_else_is_refused(bytes: Vec<u8>) {
            let mut buffer = Vec::new();
            // An error or a frame, and never more memory than a frame.
            let _ = read_frame(&mut bytes.as_slice(), &mut buffer);
            prop_assert!(buffer.len() <= MAX_FRAME_BYTES);
        }
    }
}
