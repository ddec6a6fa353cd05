//! Files beside the disks (TPM state): `/files/…` of the snapshot becomes `files/…` in the folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use vmtwin_repository::{EntryKind, SnapshotReader};

use super::error::RestoreError;
use super::folder::Folder;
use super::guard::Guard;
use super::name;
use super::progress::Watch;
use super::target::{Partial, Target};

/// Folder of the files, in the snapshot and in the target.
pub(super) const FILES: &str = "files";
/// Most files accepted.
const MAX_FILES: usize = 4096;
/// Most folders within one another.
const MAX_DEPTH: usize = 16;

/// A file in the snapshot.
pub(super) struct StoredFile {
    /// Its path, relative to the root; every part is checked.
    path: PathBuf,
    pub(super) size_bytes: u64,
}

impl StoredFile {
    /// Its path in the snapshot and in the target, relative to the root.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it goes to.
    fn folder(&self, root: &Path) -> PathBuf {
        root.join(self.path.parent().unwrap_or(Path::new("")))
    }

    /// Its target.
    pub(super) fn target(&self, root: &Path, force: bool) -> Target {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        Target::new(&self.folder(root), &name, force)
    }

    /// Where it is in the snapshot.
    pub(super) fn path_in_snapshot(&self) -> String {
        format!("/{}", self.path.display())
    }

    /// Writes it.
    pub(super) fn write(
        &self,
        reader: &SnapshotReader,
        folder: &mut Folder,
        guard: &Guard,
        target: Target,
        watch: Watch<'_>,
    ) -> Result<Partial, RestoreError> {
        folder.make(&self.folder(folder.path()), guard)?;
        let (partial, mut file) = target.begin(guard)?;
        reader
            .copy_file(&self.path_in_snapshot(), &mut file)
            .map_err(|error| super::raw::sink_error(error, &partial))?;
        let synced = file.flush().and_then(|()| file.sync_all());
        synced.map_err(RestoreError::file("write", partial.path()))?;
        watch.progress.advance(self.size_bytes);
        Ok(partial)
    }
}

/// All files of the snapshot.
pub(super) fn list(reader: &SnapshotReader) -> Result<Vec<StoredFile>, RestoreError> {
    let mut files = Vec::new();
    let root = reader.list("/")?;
    if root
        .iter()
        .any(|entry| entry.name == FILES && entry.kind == EntryKind::Folder)
    {
        walk(reader, Path::new(FILES), 0, &mut files)?;
    }
    Ok(files)
}

fn walk(
    reader: &SnapshotReader,
    dir: &Path,
    depth: usize,
    files: &mut Vec<StoredFile>,
) -> Result<(), RestoreError> {
    let shown = format!("/{}", dir.display());
    for entry in reader.list(&shown)? {
        if !name::is_file_name(&entry.name) {
            let why = format!("{:?} is no name of a file", entry.name);
            return Err(RestoreError::damaged(shown, why));
        }
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Folder if depth < MAX_DEPTH => walk(reader, &path, depth + 1, files)?,
            EntryKind::File if files.len() < MAX_FILES => {
                files.push(StoredFile {
                    path,
                    size_bytes: entry.size_bytes,
                });
            }
            EntryKind::Other => {
                let why = format!("{:?} is neither a file nor a folder", entry.name);
                return Err(RestoreError::damaged(shown, why));
            }
            _ => return Err(RestoreError::damaged(shown, "too many files or folders")),
        }
    }
    Ok(())
}
