//! Reading an archive that may come from anywhere. [`Archive::open`] checks its shape and its
//! manifest; [`Archive::verify`] every byte. A restore does both before it uses anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::{MANIFEST, MAX_ARCHIVE_BYTES, MAX_ENTRIES, MAX_MANIFEST_BYTES, MAX_TOTAL_BYTES};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::{Entry, FORMAT, Manifest, VERSION};
use crate::name::EntryPath;

/// Length of the record at the end of a zip file (APPNOTE 4.3.16), without a comment.
const END_LEN: u64 = 22;
/// Signature of that record.
const END_SIGNATURE: &[u8] = b"PK\x05\x06";
/// Length and signature of the record before it that leads to the extension of 64 bits (4.3.15).
const LOCATOR_LEN: u64 = 20;
const LOCATOR_SIGNATURE: &[u8] = b"PK\x06\x07";
/// Most bytes that describe one entry in the directory at the end: 46, a name, and some fields.
const MAX_DIRECTORY_BYTES_PER_ENTRY: u32 = 512;
/// The kind of file in a Unix mode, and a regular one.
const MODE_KIND: u32 = 0o170_000;
const MODE_REGULAR: u32 = 0o100_000;

/// An open archive whose shape and manifest are good.
pub struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    manifest: Manifest,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("path", &self.path).finish()
    }
}

impl Archive {
    /// Opens an archive and reads its manifest, nothing else.
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| read_error(path, source);
        let mut file = File::open(path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(bad(path, "it is not a regular file"));
        }
        let entries = check_end(&mut file).map_err(|why| why.of(path))?;
        let mut zip =
            ZipArchive::new(BufReader::new(file)).map_err(|error| bad(path, &error.to_string()))?;
        if zip.offset() != 0 || zip.len() != usize::from(entries) {
            return Err(bad(path, "a name comes twice, or something is before it"));
        }
        let sizes = check_entries(&mut zip).map_err(|why| bad(path, &why))?;
        let manifest = read_manifest(&mut zip, path)?;
        check_manifest(&manifest, sizes).map_err(|why| bad(path, &why))?;
        Ok(Self {
            path: path.to_owned(),
            zip,
            manifest,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads everything and compares it with the manifest.
    pub fn verify(&mut self) -> Result<()> {
        for entry in self.manifest.entries.clone() {
            let read = io::copy(&mut self.reader(&entry.path)?, &mut io::sink());
            read.map_err(|error| bad(&self.path, &format!("{}: {error}", entry.path)))?;
        }
        Ok(())
    }

    /// An entry as a stream. It ends well only if every byte was what the manifest says: whoever
    /// uses it reads it to its end first, or has [verified](Self::verify) the archive.
    pub fn reader(&mut self, path: &EntryPath) -> Result<EntryReader<'_>> {
        let Some(entry) = self.manifest.entry(path).cloned() else {
            return Err(bad(&self.path, &format!("it holds no {path}")));
        };
        let from = self
            .zip
            .by_name(&path.to_string())
            .map_err(|error| bad(&self.path, &error.to_string()))?;
        Ok(EntryReader {
            left: entry.bytes,
            entry,
            from: Box::new(from),
            hash: Some(Hash::new()),
        })
    }
}

/// An entry that is being read.
pub struct EntryReader<'a> {
    entry: Entry,
    from: Box<dyn Read + Send + 'a>,
    left: u64,
    hash: Option<Hash>,
}

impl Read for EntryReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let Some(hash) = &mut self.hash else {
            return Ok(0);
        };
        let taken = self.from.read(into)?;
        if taken as u64 > self.left {
            return Err(damaged("it is longer than the manifest says"));
        }
        self.left -= taken as u64;
        hash.update(&into[..taken]);
        if taken > 0 {
            return Ok(taken);
        }
        let found = self.hash.take().map(Hash::hex);
        if self.left > 0 || found.as_ref() != Some(&self.entry.sha256) {
            return Err(damaged("its hash is not that of the manifest"));
        }
        Ok(0)
    }
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Why a file is refused before it is looked into.
enum Refusal {
    Why(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Refusal {
    fn of(self, path: &Path) -> Error {
        match self {
            Self::Why(why) => bad(path, why),
            Self::Io(source) => read_error(path, source),
        }
    }
}

/// Checks the last record, before anybody takes memory for what it promises. Returns how many
/// entries there are.
fn check_end(file: &mut File) -> Result<u16, Refusal> {
    let length = file.metadata()?.len();
    if !(END_LEN..=MAX_ARCHIVE_BYTES).contains(&length) {
        return Err(Refusal::Why("it is too short or too long"));
    }
    let mut end = [0u8; END_LEN as usize];
    file.seek(SeekFrom::Start(length - END_LEN))?;
    file.read_exact(&mut end)?;
    let u16_at = |at: usize| u16::from_le_bytes([end[at], end[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let entries = u16_at(10);
    let (directory_len, directory_at) = (u32_at(12), u32_at(16));
    if !end.starts_with(END_SIGNATURE) || u16_at(20) != 0 {
        return Err(Refusal::Why("it does not end as an archive of ours does"));
    }
    if u16_at(4) != 0 || u16_at(6) != 0 || u16_at(8) != entries {
        return Err(Refusal::Why("it has several volumes"));
    }
    if entries == 0 || entries > MAX_ENTRIES {
        return Err(Refusal::Why("it has no entry, or too many"));
    }
    let fits = u64::from(directory_at) + u64::from(directory_len) == length - END_LEN;
    if !fits || directory_len > u32::from(entries) * MAX_DIRECTORY_BYTES_PER_ENTRY {
        return Err(Refusal::Why("its directory is not where it should be"));
    }
    if length >= END_LEN + LOCATOR_LEN {
        let mut locator = [0u8; 4];
        file.seek(SeekFrom::Start(length - END_LEN - LOCATOR_LEN))?;
        file.read_exact(&mut locator)?;
        if locator == LOCATOR_SIGNATURE {
            return Err(Refusal::Why("it is a zip file of 64 bits"));
        }
    }
    file.rewind()?;
    Ok(entries)
}

/// Checks what the directory says of each entry. Returns their sizes, without the manifest's.
fn check_entries(
    zip: &mut ZipArchive<BufReader<File>>,
) -> Result<BTreeMap<EntryPath, u64>, String> {
    let mut sizes = BTreeMap::new();
    let mut total: u64 = 0;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|error| error.to_string())?;
        let name = str::from_utf8(entry.name_raw()).map_err(|_| "a name is not text")?;
        let regular = entry
            .unix_mode()
            .is_none_or(|mode| mode & MODE_KIND == MODE_REGULAR || mode & MODE_KIND == 0);
        if !regular || entry.encrypted() || !entry.comment_raw().is_empty() {
            return Err(format!("{name:?} is not a plain file"));
        }
        let packed = entry.compression();
        if packed != CompressionMethod::Deflated && packed != CompressionMethod::Stored {
            return Err(format!("{name:?} is packed in an unknown way"));
        }
        total = total.saturating_add(entry.size());
        if index == 0 {
            if name != MANIFEST || entry.size() > MAX_MANIFEST_BYTES {
                return Err("its first entry is no manifest".to_owned());
            }
            continue;
        }
        let path: EntryPath = name.parse()?;
        if entry.size() > path.max_bytes() || total > MAX_TOTAL_BYTES {
            return Err(format!("{name:?} is too large"));
        }
        sizes.insert(path, entry.size());
    }
    Ok(sizes)
}

fn read_manifest(zip: &mut ZipArchive<BufReader<File>>, path: &Path) -> Result<Manifest> {
    /// What is read first: a later version may have other fields.
    #[derive(serde::Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let unusable = |error: &dyn std::fmt::Display| bad(path, &format!("{MANIFEST}: {error}"));
    let from = zip.by_index(0).map_err(|error| unusable(&error))?;
    let mut text = Vec::new();
    from.take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| unusable(&error))?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(unusable(&"it is too long"));
    }
    let head: Head = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
    if head.format != FORMAT {
        return Err(unusable(&"it is of another format"));
    }
    if head.version > VERSION {
        return Err(Error::NewerArchive {
            path: path.to_owned(),
            found: head.version,
            known: VERSION,
        });
    }
    serde_json::from_slice(&text).map_err(|error| unusable(&error))
}

fn check_manifest(manifest: &Manifest, mut sizes: BTreeMap<EntryPath, u64>) -> Result<(), String> {
    manifest.check()?;
    for entry in &manifest.entries {
        if sizes.remove(&entry.path) != Some(entry.bytes) {
            return Err(format!("{} is missing or of another size", entry.path));
        }
    }
    match sizes.into_keys().next() {
        None => Ok(()),
        Some(path) => Err(format!("{path} is not in the manifest")),
    }
}

fn bad(path: &Path, why: &str) -> Error {
    Error::BadArchive {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

fn read_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        what: "read",
        source,
    }
}
