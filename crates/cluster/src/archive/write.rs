//! Writing: parts arrive in any order and at any speed, each into a file of a private folder, so
//! that no part is ever held in memory; when all are there, they become one file under its name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, System, ZipWriter};

use super::{MANIFEST, MAX_ARCHIVE_BYTES, partial};
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::manifest::{Entry, Manifest};
use crate::name::EntryPath;

/// Level of deflate: configuration is text, and small.
const LEVEL: i64 = 6;

/// The parts of an archive that is being made. Dropped, nothing of it stays.
#[derive(Debug)]
pub struct Parts {
    folder: TempDir,
    parts: BTreeMap<EntryPath, Part>,
}

#[derive(Debug)]
struct Part {
    file: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Parts {
    /// Parts that are kept in a private folder below `scratch` until they are published.
    pub fn new(scratch: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(scratch)
            .map_err(|source| written(scratch, source))?;
        Ok(Self {
            folder,
            parts: BTreeMap::new(),
        })
    }

    /// The folder that they are kept in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The paths that are there.
    pub fn paths(&self) -> impl Iterator<Item = &EntryPath> {
        self.parts.keys()
    }

    /// Takes a part from a stream. On an error, also one of the stream, there is no such part.
    pub fn add(&mut self, path: EntryPath, from: &mut dyn Read) -> Result<()> {
        let mut part = self.begin(path)?;
        let place = part.file.clone();
        io::copy(from, &mut part).map_err(|source| match part.too_large() {
            Some(error) => error,
            None => written(&place, source),
        })?;
        self.finish(part)
    }

    /// Begins a part that is written piece by piece. It is there once it is given to
    /// [`Parts::finish`]; several may be written at once.
    pub fn begin(&self, path: EntryPath) -> Result<PartWriter> {
        if self.parts.contains_key(&path) {
            return Err(twice(&path));
        }
        let file = NamedTempFile::new_in(self.folder.path())
            .map_err(|source| written(self.folder.path(), source))?;
        Ok(PartWriter {
            max_bytes: path.max_bytes(),
            path,
            file: file.path().to_owned(),
            to: BufWriter::new(file),
            bytes: 0,
            hash: Hash::new(),
            over: false,
        })
    }

    /// Takes a part that was written to its end.
    pub fn finish(&mut self, part: PartWriter) -> Result<()> {
        if self.parts.contains_key(&part.path) {
            return Err(twice(&part.path));
        }
        let place = part.file;
        let file = part
            .to
            .into_inner()
            .map_err(|error| written(&place, error.into_error()))?;
        let (_, file) = file.keep().map_err(|error| written(&place, error.error))?;
        let done = Part {
            file,
            bytes: part.bytes,
            sha256: part.hash.hex(),
        };
        self.parts.insert(part.path, done);
        Ok(())
    }

    /// Makes the archive of the parts, for this user alone; `manifest.entries` is filled in here. It is in
    /// the folder of `to` then, and gets its name by [`Zipped::publish`]. What others left there whose
    /// processes died at this point is removed.
    pub fn zip(self, mut manifest: Manifest, to: &Path) -> Result<Zipped> {
        let entry = |(path, part): (&EntryPath, &Part)| Entry {
            path: path.clone(),
            bytes: part.bytes,
            sha256: part.sha256.clone(),
        };
        manifest.entries = self.parts.iter().map(entry).collect();
        manifest.check().map_err(|why| Error::Manifest { why })?;
        let folder = folder_of(to);
        let partial = partial::begin(folder).map_err(|source| written(folder, source))?;
        let zipped = self.write(&manifest, partial.as_file());
        zipped.map_err(|source| written(to, source))?;
        let length = partial.as_file().metadata();
        let length = length.map_err(|source| written(to, source))?.len();
        if length > MAX_ARCHIVE_BYTES {
            return Err(Error::TooLarge {
                entry: to.display().to_string(),
                max_bytes: MAX_ARCHIVE_BYTES,
            });
        }
        Ok(Zipped {
            partial,
            manifest,
            to: to.to_owned(),
        })
    }

    fn write(&self, manifest: &Manifest, file: &File) -> io::Result<()> {
        let mut zip = ZipWriter::new(BufWriter::new(file));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(LEVEL))
            .last_modified_time(DateTime::default())
            .system(System::Unix)
            .unix_permissions(0o600);
        zip.start_file(MANIFEST, options)?;
        let mut text = serde_json::to_vec_pretty(manifest)?;
        text.push(b'\n');
        zip.write_all(&text)?;
        for (path, part) in &self.parts {
            zip.start_file(path.to_string(), options)?;
            let copied = io::copy(&mut File::open(&part.file)?, &mut zip)?;
            if copied != part.bytes {
                return Err(io::Error::other("a part has changed since it was written"));
            }
        }
        let mut buffered = zip.finish()?;
        buffered.flush()?;
        buffered.get_mut().rewind()?;
        buffered.get_ref().sync_all()
    }
}

/// A whole archive that has no name yet. Dropped, nothing of it stays.
#[derive(Debug)]
pub struct Zipped {
    partial: NamedTempFile,
    manifest: Manifest,
    to: PathBuf,
}

impl Zipped {
    /// Gives it its name, and never that of another file.
    pub fn publish(self) -> Result<Manifest> {
        let to = &self.to;
        self.partial
            .persist_noclobber(to)
            .map_err(|error| match error.error.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists { path: to.clone() },
                _ => written(to, error.error),
            })?;
        let folder = folder_of(to);
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| written(folder, source))?;
        Ok(self.manifest)
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A part that is being written. Dropped before [`Parts::finish`], there is no such part.
pub struct PartWriter {
    path: EntryPath,
    file: PathBuf,
    to: BufWriter<NamedTempFile>,
    bytes: u64,
    max_bytes: u64,
    hash: Hash,
    over: bool,
}

impl PartWriter {
    /// The error, if it was given more than it may hold.
    pub fn too_large(&self) -> Option<Error> {
        self.over.then(|| Error::TooLarge {
            entry: self.path.to_string(),
            max_bytes: self.max_bytes,
        })
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes + bytes.len() as u64 > self.max_bytes {
            self.over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let taken = self.to.write(bytes)?;
        self.hash.update(&bytes[..taken]);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn twice(path: &EntryPath) -> Error {
    Error::Twice {
        entry: path.to_string(),
    }
}

fn written(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        what: "written",
        source,
    }
}
