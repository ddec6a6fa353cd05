//! `vmtwin snapshot ls` and `vmtwin snapshot get`: files in the disks of a snapshot.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use time::OffsetDateTime;
use vmtwin_appliance::{Entry, EntryKind, Extracted, Extraction, FileToWriter, Name};
use vmtwin_repository::{Repository, Snapshot};

use crate::cancel::Cancel;
use crate::cli::files::{GetArgs, LsArgs, ReadArgs};
use crate::files::{Address, Files, plain};
use crate::home::Home;
use crate::ui::{Ui, bytes, table};
use crate::{EXIT_FAILED, EXIT_WARNINGS};

/// The folder that is none.
const STDOUT: &str = "-";

/// What both commands need.
pub(crate) struct FileCommands<'a> {
    pub(crate) home: &'a Home,
    pub(crate) ui: &'a Ui,
    pub(crate) cancel: &'a Cancel,
}

/// `ls ID`.
#[derive(Debug, Serialize)]
struct Systems {
    snapshot: String,
    /// Ids of all disks.
    disks: Vec<String>,
    file_systems: Vec<System>,
}

/// A file system.
#[derive(Debug, Serialize)]
struct System {
    /// Ids of the disks it is on.
    disks: Vec<String>,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
    size_bytes: u64,
    /// Why files in it cannot be read.
    problem: Option<String>,
}

/// `ls ID:DISK/PATH`.
#[derive(Debug, Serialize)]
struct Listing {
    snapshot: String,
    disk: String,
    file_system: String,
    path: Name,
    /// What is at the path.
    entry: Entry,
    /// What is in it, if it is a folder.
    entries: Vec<Entry>,
}

/// `get`.
#[derive(Debug, Serialize)]
struct Got {
    snapshot: String,
    written: Vec<GotOne>,
}

/// One thing that was asked for.
#[derive(Debug, Serialize)]
struct GotOne {
    disk: String,
    file_system: String,
    path: Name,
    /// Where it is now.
    to: PathBuf,
    files: u64,
    folders: u64,
    links: u64,
    bytes: u64,
    skipped: u64,
}

impl FileCommands<'_> {
    /// Lists file systems, or a folder.
    pub(crate) fn ls(&self, args: &LsArgs) -> Result<i32> {
        let address = Address::parse(&args.target)?;
        let (_repository, snapshot, mut files) =
            self.open(&address.snapshot, &args.read, address.disk.as_deref())?;
        let result = match &address.disk {
            Some(disk) => self.list(&mut files, &snapshot, &address, disk, args),
            None => self.show_systems(&snapshot, &files),
        };
        result.map_err(|error| blame(error, &files))
    }

    fn list(
        &self,
        files: &mut Files,
        snapshot: &Snapshot,
        address: &Address,
        disk: &str,
        args: &LsArgs,
    ) -> Result<i32> {
        let at = files.choose(disk, args.read.filesystem.as_deref())?;
        let mut skipped = Vec::new();
        let note = |name: &Name, why: &str| skipped.push((name.clone(), why.to_owned()));
        let listed = files.appliance.list(at, &address.path, note);
        let (entry, entries) = listed.with_context(|| place(address, files, at))?;
        let listing = Listing {
            snapshot: snapshot.id.clone(),
            disk: disk.to_owned(),
            file_system: files.systems[at].name.clone(),
            path: address.path.clone(),
            entry,
            entries,
        };
        self.ui.result(&listing, || listing_text(&listing))?;
        Ok(self.warn(&skipped, skipped.len() as u64, files))
    }

    fn show_systems(&self, snapshot: &Snapshot, files: &Files) -> Result<i32> {
        let id = |at: &usize| files.disks[*at].clone();
        let file_systems = files.systems.iter().map(|system| System {
            disks: system.disks.iter().map(id).collect(),
            name: system.name.clone(),
            kind: system.kind.clone(),
            label: system.label.clone(),
            size_bytes: system.size_bytes,
            problem: system.problem.clone(),
        });
        let systems = Systems {
            snapshot: snapshot.id.clone(),
            disks: files.disks.clone(),
            file_systems: file_systems.collect(),
        };
        self.ui.result(&systems, || systems_text(&systems))?;
        Ok(self.warn(&[], 0, files))
    }

    /// Copies files out.
    pub(crate) fn get(&self, args: &GetArgs) -> Result<i32> {
        let addresses = args.targets.iter().map(|text| Address::parse(text));
        let addresses: Vec<Address> = addresses.collect::<Result<_>>()?;
        let [first, others @ ..] = addresses.as_slice() else {
            bail!("nothing is asked for");
        };
        if others.iter().any(|other| other.snapshot != first.snapshot) {
            bail!("one command reads one snapshot; use one for each");
        }
        if let Some(bad) = addresses.iter().find(|address| address.disk.is_none()) {
            let id = &bad.snapshot;
            bail!("which disk and path? Try: vmtwin snapshot ls {id}");
        }
        let to_stdout = args.to == Path::new(STDOUT);
        if to_stdout && !others.is_empty() {
            bail!("only one file can be written to stdout");
        }
        if !to_stdout {
            check_targets(&addresses, &args.to)?;
        }
        let only = match others {
            [] => first.disk.as_deref(),
            _ => None,
        };
        let (_repository, snapshot, mut files) = self.open(&first.snapshot, &args.read, only)?;
        let result = self.copy(&mut files, &snapshot, &addresses, args);
        result.map_err(|error| blame(error, &files))
    }

    fn copy(
        &self,
        files: &mut Files,
        snapshot: &Snapshot,
        addresses: &[Address],
        args: &GetArgs,
    ) -> Result<i32> {
        let mut got = Got {
            snapshot: snapshot.id.clone(),
            written: Vec::new(),
        };
        let (mut skipped, mut count) = (Vec::new(), 0);
        for address in addresses {
            let disk = address.disk.as_deref().unwrap_or_default();
            let at = files.choose(disk, args.read.filesystem.as_deref())?;
            let context = place(address, files, at);
            if args.to == Path::new(STDOUT) {
                let error = stdout(files, at, address).context(context)?;
                let why = error.map(|why| (address.path.clone(), why));
                count = u64::from(why.is_some());
                return Ok(self.warn(why.as_slice(), count, files));
            }
            let (done, to) = self.one(files, at, address, args).context(context)?;
            count += done.skipped_count;
            got.written.push(GotOne {
                disk: disk.to_owned(),
                file_system: files.systems[at].name.clone(),
                path: address.path.clone(),
                to,
                files: done.files,
                folders: done.folders,
                links: done.links,
                bytes: done.bytes,
                skipped: done.skipped_count,
            });
            skipped.extend(done.skipped);
        }
        self.ui.result(&got, || got_text(&got))?;
        Ok(self.warn(&skipped, count, files))
    }

    fn open(
        &self,
        id: &str,
        read: &ReadArgs,
        disk: Option<&str>,
    ) -> Result<(Repository, Snapshot, Files)> {
        let repository = self.home.repository()?;
        let snapshot = repository.snapshot(id)?;
        let spinner = self.ui.spinner("starting the reader");
        let files = Files::open(self.home, self.cancel, &repository, &snapshot, read, disk);
        spinner.finish_and_clear();
        let files = files?;
        if files.appliance.kvm_failed() {
            self.ui
                .note("KVM was tried and does not work here; --accel tcg saves the wait");
        }
        Ok((repository, snapshot, files))
    }

    /// Into a folder beside its place, then to its place.
    fn one(
        &self,
        files: &mut Files,
        at: usize,
        address: &Address,
        args: &GetArgs,
    ) -> Result<(Extracted, PathBuf)> {
        std::fs::create_dir_all(&args.to)
            .with_context(|| format!("cannot make the folder {}", args.to.display()))?;
        let name = target_name(address);
        let to = args.to.join(name.as_os_str());
        let work = tempfile::Builder::new()
            .prefix(".vmtwin-")
            .tempdir_in(&args.to);
        let work = work.with_context(|| format!("cannot write to {}", args.to.display()))?;
        let bar = self.ui.spinner(&name.to_string());
        let mut progress = |done: &Extracted| {
            bar.set_message(format!("{} files, {}", done.files, bytes(done.bytes)));
        };
        let mut extraction =
            Extraction::new(work.path(), name.clone(), args.keep_owner, &mut progress)?;
        let result = files.appliance.get(at, &address.path, &mut extraction);
        let done = result.and_then(|()| extraction.finish());
        bar.finish_and_clear();
        let done = done?;
        let made = work.path().join(name.as_os_str());
        renameat_with(CWD, &made, CWD, &to, RenameFlags::NOREPLACE)
            .with_context(|| format!("cannot put it at {}", to.display()))?;
        Ok((done, to))
    }

    /// Says what is missing; gives the exit code.
    fn warn(&self, skipped: &[(Name, String)], count: u64, files: &Files) -> i32 {
        const SHOWN: usize = 20;
        for (name, why) in skipped.iter().take(SHOWN) {
            self.ui.note(&format!("warning: {name}: {}", plain(why)));
        }
        if count > SHOWN as u64 {
            self.ui
                .note(&format!("warning: {count} in all are left out"));
        }
        match (files.read_errors(), count) {
            (0, 0) => 0,
            (0, _) => EXIT_WARNINGS,
            (errors, _) => {
                self.ui
                    .note(&format!("error: {}", repository_trouble(errors)));
                EXIT_FAILED
            }
        }
    }
}

/// An error that comes from the repository says so.
fn blame(error: anyhow::Error, files: &Files) -> anyhow::Error {
    match files.read_errors() {
        0 => error,
        errors => error.context(repository_trouble(errors)),
    }
}

fn repository_trouble(errors: u64) -> String {
    format!("{errors} reads of the repository failed; look with: vmtwin check --read-data")
}

/// One file to stdout; gives why not all of it could be read.
fn stdout(files: &mut Files, at: usize, address: &Address) -> Result<Option<String>> {
    let mut out = std::io::stdout().lock();
    let mut receiver = FileToWriter::new(&mut out);
    files.appliance.get(at, &address.path, &mut receiver)?;
    let error = receiver.finish()?;
    out.flush()?;
    Ok(error)
}

/// What a copy is called: as in its folder, or as the disk if it is the root.
fn target_name(address: &Address) -> Name {
    let parts = address.path.0.split(|byte| *byte == b'/');
    match parts.into_iter().rfind(|part| !part.is_empty()) {
        Some(last) => Name(last.to_vec()),
        None => Name(address.disk.clone().unwrap_or_default().into_bytes()),
    }
}

/// Before a machine is started: places must be free, and differ.
fn check_targets(addresses: &[Address], folder: &Path) -> Result<()> {
    let mut names: Vec<Name> = addresses.iter().map(target_name).collect();
    for name in &names {
        if !name.is_entry() {
            bail!("'{name}' is no name for a copy");
        }
        let path = folder.join(name.as_os_str());
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already; give another --to", path.display());
        }
    }
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!(
            "two of them would be called '{}'; get them one by one",
            pair[0]
        );
    }
    Ok(())
}

fn place(address: &Address, files: &Files, at: usize) -> String {
    let system = &files.systems[at];
    let disk = address.disk.as_deref().unwrap_or_default();
    format!("{} in {} of {disk}", address.path, system.name)
}

fn systems_text(systems: &Systems) -> String {
    let mut rows = Vec::new();
    for disk in &systems.disks {
        let on_disk = systems
            .file_systems
            .iter()
            .filter(|s| s.disks.contains(disk));
        let before = rows.len();
        rows.extend(on_disk.map(|system| {
            vec![
                disk.clone(),
                plain(&system.name),
                plain(&system.kind),
                system.label.as_deref().map_or_else(|| "-".into(), plain),
                bytes(system.size_bytes),
                system.problem.as_deref().map(plain).unwrap_or_default(),
            ]
        }));
        if rows.len() == before {
            let dash = || "-".to_owned();
            rows.push(vec![
                disk.clone(),
                dash(),
                dash(),
                dash(),
                dash(),
                "nothing known".into(),
            ]);
        }
    }
    table(
        &["DISK", "FILE SYSTEM", "TYPE", "LABEL", "SIZE", "NOTE"],
        &rows,
    )
}

fn listing_text(listing: &Listing) -> String {
    let shown = match listing.entry.kind {
        EntryKind::Folder => listing.entries.as_slice(),
        _ => std::slice::from_ref(&listing.entry),
    };
    let rows: Vec<Vec<String>> = shown.iter().map(row).collect();
    table(&["MODE", "OWNER", "SIZE", "CHANGED (UTC)", "NAME"], &rows)
}

fn row(entry: &Entry) -> Vec<String> {
    let time = OffsetDateTime::from_unix_timestamp(entry.mtime_s).ok();
    let time = time.map(|t| {
        let (date, hour, minute) = (t.date(), t.hour(), t.minute());
        format!("{date} {hour:02}:{minute:02}")
    });
    let name = match (&entry.target, entry.kind) {
        (Some(target), _) => format!("{} -> {target}", entry.name),
        (None, EntryKind::Folder) => format!("{}/", entry.name),
        (None, _) => entry.name.to_string(),
    };
    let size = match entry.kind {
        EntryKind::File => bytes(entry.size_bytes),
        _ => "-".into(),
    };
    let owner = format!("{}:{}", entry.uid, entry.gid);
    vec![
        permissions(entry),
        owner,
        size,
        time.unwrap_or_else(|| "-".into()),
        name,
    ]
}

/// As `ls -l` shows them.
fn permissions(entry: &Entry) -> String {
    let kind = match entry.kind {
        EntryKind::File => '-',
        EntryKind::Folder => 'd',
        EntryKind::Link => 'l',
        EntryKind::Special => 's',
    };
    let bit = |at: u32, letter| match entry.mode & (1 << at) {
        0 => '-',
        _ => letter,
    };
    let letters = (0..9)
        .rev()
        .map(|at| bit(at, ['x', 'w', 'r'][at as usize % 3]));
    std::iter::once(kind).chain(letters).collect()
}

fn got_text(got: &Got) -> String {
    let line = |one: &GotOne| {
        let files = match one.files {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        };
        format!("{} ({files}, {})", one.to.display(), bytes(one.bytes))
    };
    got.written.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_named_by_the_last_name() {
        let name = |text: &str| {
            let address = Address::parse(text.as_ref());
            address
                .ok()
                .map(|address| target_name(&address).to_string())
        };
        assert_eq!(name("x:disk0/etc/fstab").as_deref(), Some("fstab"));
        assert_eq!(name("x:disk0/srv/www//").as_deref(), Some("www"));
        assert_eq!(name("x:disk0/").as_deref(), Some("disk0"));
    }

    #[test]
    fn places_are_free_and_differ() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let parse = |text: &str| Address::parse(text.as_ref()).ok();
        let check = |texts: &[&str]| {
            let all: Option<Vec<_>> = texts.iter().map(|t| parse(t)).collect();
            check_targets(&all.unwrap_or_default(), dir.path()).map_err(|e| e.to_string())
        };
        assert!(check(&["x:d/a", "x:d/b"]).is_ok());
        assert!(check(&["x:d/a", "x:d/b/a"]).is_err_and(|e| e.contains("two of them")));
        assert!(check(&["x:d/a/.."]).is_err());
        std::fs::write(dir.path().join("a"), "").unwrap_or_default();
        assert!(check(&["x:d/a"]).is_err_and(|e| e.contains("there already")));
    }
}
