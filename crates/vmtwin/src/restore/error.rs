//! Why a restore failed, and what to do.

use std::io;
use std::path::PathBuf;

use vmtwin_hypervisor::launch::{LaunchError, StartError, TpmError};
use vmtwin_hypervisor::qmp::QmpError;
use vmtwin_migration::RebuildError;

use crate::failpoint::Injected;

/// A restore failed; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RestoreError {
    /// The repository could not be read.
    #[error("the snapshot could not be read from the repository")]
    Repository(#[source] vmtwin_repository::Error),
    /// What the snapshot says contradicts itself, or is not allowed.
    #[error(
        "{path} of the snapshot can't be used: {why}; run `vmtwin check`, or take another snapshot"
    )]
    Damaged {
        /// Path in the snapshot.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The snapshot is newer than this program.
    #[error(
        "{path} of the snapshot has format {found}, this vmtwin knows up to {known}; update vmtwin"
    )]
    NewerFormat {
        /// Path in the snapshot.
        path: &'static str,
        /// Its format.
        found: u64,
        /// The newest known.
        known: u32,
    },
    /// Another instant restore was begun in the folder.
    #[error(
        "{} holds an instant restore of snapshot {}, which is not complete; finish that one, or \
         choose another folder",
        dir.display(), &snapshot[..snapshot.len().min(8)]
    )]
    OtherRestore {
        /// The folder.
        dir: PathBuf,
        /// The snapshot that is restored there.
        snapshot: String,
    },
    /// The guest would run out of space while it runs.
    #[error(
        "the disks need up to {}, and {} has {} free: the guest would stop when it is full; make room, \
         choose another folder, or take the risk with --force",
        crate::ui::bytes(*.needed), dir.display(), crate::ui::bytes(*.free)
    )]
    NoSpace {
        /// The folder.
        dir: PathBuf,
        /// What the disks take without what is zero, bytes.
        needed: u64,
        /// What is free, bytes.
        free: u64,
    },
    /// A disk that the snapshot does not hold.
    #[error("the snapshot has no disk {id:?}; it has {known}")]
    UnknownDisk {
        /// The id asked for.
        id: String,
        /// Those it has.
        known: String,
    },
    /// A guest can't run on some of its disks.
    #[error(
        "the guest can't be started without its disk {id:?}; restore all disks, or leave out --run"
    )]
    DiskLeftOut {
        /// The disk left out.
        id: String,
    },
    /// Memory was asked for, but is not held.
    #[error("the snapshot holds no memory (consistency {consistency:?}); restore its disks alone")]
    NoMemory {
        /// Consistency of the snapshot.
        consistency: String,
    },
    /// A file is in the way.
    #[error("{} is already there; choose another folder with --to, or replace it with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What is in the way is no file, and is never replaced.
    #[error("{} is there and is no file; choose another folder with --to", path.display())]
    NotAFile {
        /// What is in the way.
        path: PathBuf,
    },
    /// A running guest uses the file.
    #[error("{} is in use by a running guest; shut that down first, or choose another folder with --to", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A guest that was restored here still runs.
    #[error("a guest runs in this folder, on {}; shut it down first, or choose another folder with --to", socket.display())]
    RunsHere {
        /// Its QMP socket.
        socket: PathBuf,
    },
    /// Somebody else restores into the folder.
    #[error("another restore writes to {}; wait for it, or choose another folder with --to", dir.display())]
    FolderBusy {
        /// The folder.
        dir: PathBuf,
    },
    /// A socket's path is too long for the system.
    #[error("{} is too long for a socket (at most {limit} bytes); choose a shorter folder with --to", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes.
        limit: usize,
    },
    /// The file system failed.
    #[error("could not {action} {}; check free space and permissions", path.display())]
    File {
        /// What was tried: `write`, `rename`…
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program is missing.
    #[error("{program} could not be run; install it (package {package}) and restore again")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The guest's TPM can't be had.
    #[error("the guest's TPM cannot be started")]
    Tpm(#[source] TpmError),
    /// The state of another TPM is where that of this one would be made.
    #[error(
        "{} is there, the state of another TPM; choose another folder with --to",
        path.display()
    )]
    OtherTpm {
        /// The state.
        path: PathBuf,
    },
    /// A program failed.
    #[error("{program} failed on {}: {message}", path.display())]
    Program {
        /// The program.
        program: &'static str,
        /// What it was to work on.
        path: PathBuf,
        /// Its own words.
        message: String,
    },
    /// The disk could not be written through `qemu-nbd`.
    #[error("could not write {} through qemu-nbd; check free space and restore again", path.display())]
    Nbd {
        /// The image.
        path: PathBuf,
        /// What the client said.
        source: vmtwin_nbd::Error,
    },
    /// The migration stream could not be made.
    #[error("the memory in the snapshot can't be made into a stream; restore its disks alone")]
    Rebuild(#[source] RebuildError),
    /// The machine can't be started again.
    #[error("the guest can't be started: restore it without --run, or see the cause")]
    Launch(#[source] LaunchError),
    /// The manifest's program is not QEMU.
    #[error("the snapshot would start {program:?}, which is not QEMU; restore it without --run")]
    NotQemu {
        /// The program.
        program: String,
    },
    /// QEMU did not start.
    #[error("QEMU did not start")]
    Start(#[source] StartError),
    /// QEMU's monitor failed.
    #[error("the restored guest's QEMU does not answer")]
    Qmp(#[source] QmpError),
    /// QEMU ended while it took its state.
    #[error("QEMU did not take the state of the guest and ended ({status}); its log ends: {tail}")]
    EndedEarly {
        /// Its exit status.
        status: String,
        /// The end of its log.
        tail: String,
    },
    /// QEMU took the state, but did not get ready.
    #[error("the restored guest is still {state:?} after {seconds} s; its log ends: {tail}")]
    NotReady {
        /// Its run state.
        state: String,
        /// How long was waited.
        seconds: u64,
        /// The end of its log.
        tail: String,
    },
    /// The process that would take the restore back did not start, or ended.
    #[error("the process that guards the restore failed; restore again")]
    Guard(#[source] io::Error),
    /// A thread died.
    #[error("a part of vmtwin failed unexpectedly ({what}); please report it")]
    Internal {
        /// Which.
        what: &'static str,
    },
    /// The caller cancelled.
    #[error("the restore was cancelled; nothing of it is left")]
    Cancelled,
    /// A test made a step fail.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl From<vmtwin_repository::Error> for RestoreError {
    fn from(error: vmtwin_repository::Error) -> Self {
        match error {
            vmtwin_repository::Error::Cancelled => RestoreError::Cancelled,
            other => RestoreError::Repository(other),
        }
    }
}

impl RestoreError {
    pub(super) fn damaged(path: impl Into<String>, why: impl ToString) -> Self {
        RestoreError::Damaged {
            path: path.into(),
            why: why.to_string(),
        }
    }

    pub(super) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| RestoreError::File {
            action,
            path,
            source,
        }
    }
}
