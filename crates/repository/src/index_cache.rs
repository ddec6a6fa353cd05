//! A copy of the index on this machine, so that opening a repository reads only index files that are
//! new: 10 million blobs are 480 MB of JSON to fetch and parse, and 290 MB of sorted rows here.
//!
//! It is sealed with the repository's keys, and names the index files it was made of. It serves only
//! while all of those are still there: whatever removes packs replaces the index files that list them.
//! A cache that does not open, for whatever reason, is as good as none; so it is not synced, and
//! programs that write it at once do not need to agree. `check` never looks at it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use crate::crypto::Sealer;
use crate::id::{ID_BYTES, Id};
use crate::index::{Index, Tables};
use crate::index_table::{BlobTable, read_u64};
use crate::sealed_stream::{SealedReader, SealedWriter};
use crate::store::StoredFile;

/// Begins the content, with the version of its form.
const MAGIC: &[u8; 16] = b"vmtwin index 1\n\0";
/// Index files that are rather read each time than copied.
const FEW_FILES: usize = 32;
/// Of so many rows, new ones are copied when they are more than one to each that is there.
const ROWS_TO_EACH: usize = 8;

/// Where the cache of one repository is.
#[derive(Clone, Debug)]
pub(crate) struct IndexCache {
    folder: PathBuf,
}

/// What the cache holds.
#[derive(Default)]
pub(crate) struct Known {
    /// The index files it was made of.
    pub(crate) files: HashSet<Id>,
    pub(crate) packs: Vec<Id>,
    pub(crate) tables: Tables,
}

impl IndexCache {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Reads it, if it is of index files that are all in the listing.
    pub(crate) fn read(&self, sealer: &Sealer, listed: &[StoredFile]) -> Option<Known> {
        match self.try_read(sealer, listed) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::debug!("index cache left aside: {error}");
                None
            }
        }
    }

    fn try_read(&self, sealer: &Sealer, listed: &[StoredFile]) -> io::Result<Option<Known>> {
        let file = File::open(self.path())?;
        let bytes = file.metadata()?.len();
        let mut input = SealedReader::new(sealer, BufReader::new(file));
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(io::Error::other("another form"));
        }
        let files: HashSet<Id> = read_ids(&mut input, bytes)?.into_iter().collect();
        let listed: HashSet<Id> = listed.iter().map(|file| file.id).collect();
        if !files.is_subset(&listed) {
            return Ok(None);
        }
        let packs = read_ids(&mut input, bytes)?;
        let tables = Tables {
            data: BlobTable::read(&mut input, bytes)?,
            trees: BlobTable::read(&mut input, bytes)?,
        };
        // The mark of the end is part of what is checked.
        if input.read(&mut [0])? != 0 {
            return Err(io::Error::other("it goes on"));
        }
        Ok(Some(Known {
            files,
            packs,
            tables,
        }))
    }

    /// Whether writing it again pays, after so many files had to be read.
    pub(crate) fn wants(&self, index: &Index, files_read: usize) -> bool {
        let rows = |tables: &Tables| tables.data.len() + tables.trees.len();
        files_read > FEW_FILES || rows(&index.recent) > rows(&index.cached) / ROWS_TO_EACH + 10_000
    }

    /// Writes all of the index, which was made of `files`. Failing loses nothing but time.
    pub(crate) fn write(&self, sealer: &Sealer, files: &[Id], index: &Index) {
        if let Err(error) = self.try_write(sealer, files, index) {
            tracing::debug!("no index cache in {}: {error}", self.folder.display());
        }
    }

    fn try_write(&self, sealer: &Sealer, files: &[Id], index: &Index) -> io::Result<()> {
        let mut folders = fs::DirBuilder::new();
        folders.recursive(true).mode(0o700).create(&self.folder)?;
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        let mut out = SealedWriter::new(sealer, BufWriter::new(file))?;
        out.write_all(MAGIC)?;
        write_ids(&mut out, files)?;
        write_ids(&mut out, &index.packs)?;
        let (cached, recent) = (&index.cached, &index.recent);
        cached.data.write_both(&recent.data, &mut out)?;
        cached.trees.write_both(&recent.trees, &mut out)?;
        let file = out.finish()?.into_inner()?;
        file.persist(self.path())?;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.folder.join("index")
    }
}

fn write_ids(out: &mut dyn Write, ids: &[Id]) -> io::Result<()> {
    out.write_all(&(ids.len() as u64).to_le_bytes())?;
    ids.iter().try_for_each(|id| out.write_all(id.as_bytes()))
}

/// Reads ids; there are no more than fit so many bytes.
fn read_ids(input: &mut dyn Read, max_bytes: u64) -> io::Result<Vec<Id>> {
    let count = read_u64(input)?;
    if count > max_bytes / ID_BYTES as u64 {
        return Err(io::Error::other("more ids than bytes"));
    }
    let mut id = [0; ID_BYTES];
    let read = |_| input.read_exact(&mut id).map(|()| Id::from_bytes(id));
    (0..count).map(read).collect()
}
