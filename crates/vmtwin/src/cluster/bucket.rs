//! Backups of a cluster in a bucket of S3: made, checked and read in a private folder of this host; the
//! bucket sees whole files only.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use vmtwin_hypervisor::guard::GuardCommand;
use vmtwin_hypervisor::undo::Undo;
use vmtwin_hypervisor::undo_guard::UndoGuard;
use vmtwin_repository::S3Files;

use super::backup::{BackupReport, LONGEST, Listed, list, remove_old};
use super::cli::ClusterBackupArgs;
use crate::db::Db;
use crate::home::Home;
use crate::ui::Ui;

/// Longest backup: it goes by one request, whose content is in memory.
const MAX_BYTES: u64 = 256 << 20;
/// Most backups that are looked at.
const MAX_FILES: usize = 1000;

/// A folder of this host for files of a bucket. It goes with this value, and if vmtwin dies.
struct Private {
    dir: TempDir,
    _guard: UndoGuard,
}

impl Private {
    fn new(home: &Home) -> Result<Private> {
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(home.run_dir()?)?;
        let leftover = Undo::DeletePath {
            path: dir.path().to_owned(),
        };
        let guard = UndoGuard::start(
            &GuardCommand::of_this_program("undo-guard"),
            &leftover,
            LONGEST,
        )?;
        Ok(Private { dir, _guard: guard })
    }
}

/// A backup that can be read: where it is, or a copy of what is in a bucket.
pub(crate) struct Readable {
    path: PathBuf,
    _private: Option<Private>,
}

impl Readable {
    /// Fetches it where it is in a bucket.
    pub(crate) fn of(home: &Home, file: &Path) -> Result<Readable> {
        let Some(text) = place(file) else {
            return Ok(Readable {
                path: file.to_owned(),
                _private: None,
            });
        };
        let (prefix, name) = text.rsplit_once('/').unwrap_or((text, ""));
        let files = home.s3_files(prefix)?;
        let private = Private::new(home)?;
        let path = fetch(&files, name, private.dir.path())?;
        Ok(Readable {
            path,
            _private: Some(private),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The place in S3 that a path is, if it is one.
pub(crate) fn place(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| S3Files::claims(text))
}

fn fetch(files: &S3Files, name: &str, to: &Path) -> Result<PathBuf> {
    let from = || format!("cannot read {name} in {}", files.place());
    let data = files.read(name, MAX_BYTES).with_context(from)?;
    let path = to.join(name);
    std::fs::write(&path, data)?;
    Ok(path)
}

fn fetch_all(files: &S3Files, to: &Path) -> Result<()> {
    let all = files.list();
    let all = all.with_context(|| format!("cannot list {}", files.place()))?;
    let zips: Vec<&String> = all
        .iter()
        .map(|(name, _)| name)
        .filter(|name| name.ends_with(".zip"))
        .collect();
    if zips.len() > MAX_FILES {
        bail!(
            "{} has more than {MAX_FILES} files; use a prefix of its own",
            files.place()
        );
    }
    for name in zips {
        if !to.join(name).exists() {
            fetch(files, name, to)?;
        }
    }
    Ok(())
}

/// The backups in a bucket.
pub(crate) fn list_there(home: &Home, text: &str) -> Result<Vec<Listed>> {
    let files = home.s3_files(text)?;
    let private = Private::new(home)?;
    fetch_all(&files, private.dir.path())?;
    let mut listed = list(private.dir.path())?;
    for one in &mut listed {
        one.file = there(&files, &one.file);
    }
    Ok(listed)
}

/// Where a file of the private folder is in the bucket.
fn there(files: &S3Files, file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    PathBuf::from(format!("{}/{name}", files.place()))
}

/// Makes a backup, puts it into a bucket, and compares what is there before older ones go.
pub(crate) fn backup_to(
    home: &Home,
    ui: &Ui,
    args: &ClusterBackupArgs,
    text: &str,
) -> Result<BackupReport> {
    let files = home.s3_files(text)?;
    let private = Private::new(home)?;
    let dir = private.dir.path();
    let here = ClusterBackupArgs {
        output: Some(dir.to_owned()),
        keep: None,
        ..args.clone()
    };
    let mut report = super::backup(home, ui, &here)?;
    if report.bytes > MAX_BYTES {
        bail!(
            "the backup has {} bytes, and goes into a folder only",
            report.bytes
        );
    }
    let name = report
        .file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let data = std::fs::read(&report.file)?;
    let to = || format!("cannot write {name} to {}", files.place());
    files.write(&name, &data).with_context(to)?;
    let read = files.read(&name, MAX_BYTES);
    if read.with_context(|| format!("cannot read {name} back"))? != data {
        bail!("{} does not hold what was written as {name}", files.place());
    }
    report.file = there(&files, &report.file);
    if let Some(keep) = args.keep {
        let label = args.label.as_deref();
        fetch_all(&files, dir)?;
        let cluster = Db::open(home)?.run(async |catalog| catalog.cluster().await)?;
        let cluster = cluster.ok_or(vmtwin_catalog::Error::NoCluster)?;
        for old in remove_old(dir, Path::new(&*name), &cluster, label, keep as usize)? {
            let name = old.file_name().unwrap_or_default().to_string_lossy();
            files
                .remove(&name)
                .with_context(|| format!("cannot remove {name} in {}", files.place()))?;
            report.removed.push(there(&files, &old));
        }
    }
    Ok(report)
}
