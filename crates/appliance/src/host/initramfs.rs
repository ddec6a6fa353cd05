//! The machine's only file system before it mounts others: programs, libraries, modules.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::cpio::Archive;
use super::error::ApplianceError;
use super::kernel::Kernel;
use super::program::{self, libraries, without_debug_info};
use crate::guest::{LVM, NTFS_3G, PLAN};

/// Where the program is that becomes process 1.
pub(super) const INIT: &str = "/init";

/// Writes the archive; gives the folders of libraries.
pub(super) fn write(
    path: &Path,
    init: &Path,
    kernel: &Kernel,
    disks: usize,
) -> Result<Vec<PathBuf>, ApplianceError> {
    let failed = |source| ApplianceError::file("write", path)(source);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let mut archive = Archive::new(BufWriter::new(file));
    let mut wanted = BTreeSet::new();
    let program = without_debug_info(program::read(init)?);
    wanted.append(&mut libraries(init)?);
    let put = |archive: &mut Archive<_>, name: &str, content: &[u8]| {
        archive.file(Path::new(name), content).map_err(failed)
    };
    put(&mut archive, INIT, &program)?;
    put(&mut archive, "/disks", disks.to_string().as_bytes())?;
    // What of these the host does not have is told when it is missed.
    for (name, place) in [("lvm", LVM), ("ntfs-3g", NTFS_3G)] {
        if let Some(tool) = program::find(name) {
            wanted.append(&mut libraries(&tool)?);
            put(&mut archive, place, &program::read(&tool)?)?;
        }
    }
    add_modules(&mut archive, kernel, failed)?;
    for library in &wanted {
        let content = program::read(library)?;
        archive.file(library, &content).map_err(failed)?;
    }
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp", "/mnt", "/etc"] {
        archive.folder(Path::new(folder)).map_err(failed)?;
    }
    archive.finish().map_err(failed)?;
    let folders = wanted.iter().filter_map(|library| library.parent());
    let folders: BTreeSet<&Path> = folders.collect();
    Ok(folders.into_iter().map(Path::to_owned).collect())
}

fn add_modules<W: Write>(
    archive: &mut Archive<W>,
    kernel: &Kernel,
    failed: impl Fn(io::Error) -> ApplianceError,
) -> Result<(), ApplianceError> {
    let (plan, files) = kernel.plan()?;
    for (name, content) in &files {
        let place = Path::new("/modules").join(name);
        archive.file(&place, content).map_err(&failed)?;
    }
    let plan = serde_json::to_vec(&plan).map_err(|error| failed(error.into()))?;
    archive.file(Path::new(PLAN), &plan).map_err(&failed)
}
