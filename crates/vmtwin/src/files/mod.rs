//! Files in a snapshot's disks: joins the disks' NBD server to the machine that reads file systems.

mod address;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use vmtwin_appliance::{Appliance, DiskSource, EntryKind, FileSystem, Name, Settings};
use vmtwin_nbd::Server;
use vmtwin_repository::{Repository, Snapshot};

pub(crate) use address::Address;

use crate::cancel::Cancel;
use crate::cli::files::ReadArgs;
use crate::export::{Exports, Place};
use crate::home::Home;

/// The command that becomes process 1 of the machine.
pub(crate) const INIT_COMMAND: &str = "appliance-init";

/// A snapshot whose disks are being read. All of it ends with this value.
pub(crate) struct Files {
    pub(crate) appliance: Appliance,
    pub(crate) systems: Vec<FileSystem>,
    /// Ids, by the machine's numbers.
    pub(crate) disks: Vec<String>,
    errors: Arc<AtomicU64>,
    _serving: Serving,
}

impl Files {
    /// Starts the machine with the disks of a snapshot: all of them, since a file system may be on
    /// several, or `only` this one if they are too many.
    pub(crate) fn open(
        home: &Home,
        cancel: &Cancel,
        repository: &Repository,
        snapshot: &Snapshot,
        args: &ReadArgs,
        only: Option<&str>,
    ) -> Result<Files> {
        if snapshot.tag("vm").is_none() {
            let id = &snapshot.id[..8];
            bail!("snapshot {id} is not of a guest; look at it with restic");
        }
        let reader = repository.reader(snapshot)?;
        let mut exports = Exports::open(&reader, None)?;
        if let Some(only) = only {
            let known: Vec<_> = exports.served.iter().map(|e| e.name.clone()).collect();
            if !known.iter().any(|name| name == only) {
                bail!(
                    "the snapshot has no disk '{only}'; it has {}",
                    known.join(", ")
                );
            }
            if known.len() > vmtwin_appliance::MAX_DISKS {
                exports.served.retain(|export| export.name == only);
            }
        }
        let disks: Vec<String> = exports.served.iter().map(|e| e.name.clone()).collect();
        let errors = Arc::clone(&exports.errors);
        let serving = Serving::start(Place::in_home(home)?, exports)?;
        let mut appliance = start(&serving.place, cancel, args, &disks)?;
        let systems = appliance.file_systems()?;
        let all = systems.iter().flat_map(|system| &system.disks);
        if all.into_iter().any(|disk| *disk >= disks.len()) {
            bail!("the machine that reads the file systems says nonsense about disks");
        }
        Ok(Files {
            appliance,
            systems,
            disks,
            errors,
            _serving: serving,
        })
    }

    /// How many reads of the repository failed.
    pub(crate) fn read_errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// The file system of a disk that is meant: the one that is wanted, else the only one that can be
    /// read, else the only one with an operating system.
    pub(crate) fn choose(&mut self, disk: &str, wanted: Option<&str>) -> Result<usize> {
        let number = self.disks.iter().position(|id| id == disk);
        let number = number.with_context(|| {
            format!(
                "there is no disk '{disk}'; there are {}",
                self.disks.join(", ")
            )
        })?;
        let on_disk = |system: &FileSystem| system.disks.contains(&number);
        let all: Vec<usize> = (0..self.systems.len())
            .filter(|at| on_disk(&self.systems[*at]))
            .collect();
        if all.is_empty() {
            bail!("nothing that is known is on {disk}: no file system, and no partition with one");
        }
        let chosen = match wanted {
            Some(wanted) => {
                let named = |at: &&usize| {
                    let system = &self.systems[**at];
                    system.name == wanted || system.label.as_deref() == Some(wanted)
                };
                let found: Vec<usize> = all.iter().filter(named).copied().collect();
                match found.as_slice() {
                    [one] => *one,
                    [] => bail!(
                        "there is no '{wanted}' on {disk}; there are {}",
                        self.told(&all)
                    ),
                    _ => bail!(
                        "several are '{wanted}'; give one of the names: {}",
                        self.told(&all)
                    ),
                }
            }
            None => self.guess(disk, &all)?,
        };
        match &self.systems[chosen].problem {
            Some(problem) => bail!("{} cannot be read: {problem}", self.told(&[chosen])),
            None => Ok(chosen),
        }
    }

    fn guess(&mut self, disk: &str, all: &[usize]) -> Result<usize> {
        let readable = |at: &&usize| self.systems[**at].problem.is_none();
        let readable: Vec<usize> = all.iter().filter(readable).copied().collect();
        match (readable.as_slice(), all) {
            ([one], _) | ([], [one]) => return Ok(*one),
            ([], _) => bail!("none on {disk} can be read: {}", self.told(all)),
            _ => {}
        }
        let mut with_system = Vec::new();
        for at in &readable {
            if self.has_system(*at)? {
                with_system.push(*at);
            }
        }
        match with_system.as_slice() {
            [one] => Ok(*one),
            _ => bail!(
                "{disk} has several file systems; give one with --filesystem: {}",
                self.told(&readable)
            ),
        }
    }

    /// Whether an operating system is installed there, by the names of its folders.
    fn has_system(&mut self, at: usize) -> Result<bool> {
        let root = Name(b"/".to_vec());
        let entries = match self.appliance.list(at, &root, |_, _| {}) {
            Ok((_, entries)) => entries,
            // One that cannot be mounted is not the one that is meant.
            Err(vmtwin_appliance::ApplianceError::Refused(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let has = |name: &str| {
            entries.iter().any(|entry| {
                entry.kind != EntryKind::File && entry.name.0.eq_ignore_ascii_case(name.as_bytes())
            })
        };
        Ok((has("etc") && has("usr")) || has("Windows"))
    }

    /// Names for a message.
    fn told(&self, which: &[usize]) -> String {
        let one = |at: &usize| {
            let system = &self.systems[*at];
            match &system.label {
                Some(label) => format!("{} ({}, {})", system.name, system.kind, plain(label)),
                None => format!("{} ({})", system.name, system.kind),
            }
        };
        which.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// A text of the guest's, fit for a terminal.
pub(crate) fn plain(text: &str) -> String {
    Name(text.as_bytes().to_vec()).to_string()
}

fn start(place: &Place, cancel: &Cancel, args: &ReadArgs, disks: &[String]) -> Result<Appliance> {
    let folder = place.folder().context("the disks have no folder")?;
    let settings = Settings {
        program: std::env::current_exe().context("cannot find this program")?,
        init_args: vec![INIT_COMMAND.into()],
        kernel: args.kernel.clone(),
        modules: args.modules.clone(),
        scratch: folder.to_owned(),
        accel: args.accel.clone(),
        cancel: cancel.flag(),
    };
    let source = |id: &String| DiskSource {
        socket: place.socket().map(Into::into).unwrap_or_default(),
        export: id.clone(),
    };
    let sources: Vec<DiskSource> = disks.iter().map(source).collect();
    Ok(Appliance::start(&settings, &sources)?)
}

/// The disks' server, until it is dropped.
struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    place: Arc<Place>,
}

impl Serving {
    fn start(place: Place, exports: Exports) -> Result<Serving> {
        let server = Server::new(exports.served).context("cannot serve the disks")?;
        let (place, stop) = (Arc::new(place), Arc::new(AtomicBool::new(false)));
        let (its_place, its_stop) = (Arc::clone(&place), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("disks".to_owned());
        let thread = thread.spawn(move || {
            if let Err(error) = server.run(&its_place.listener, &its_stop) {
                tracing::error!("serving disks: {error}");
            }
        })?;
        Ok(Serving {
            stop,
            thread: Some(thread),
            place,
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
