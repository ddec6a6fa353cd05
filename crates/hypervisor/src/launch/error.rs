//! Why a machine can't be started again, and what to do.

use std::io;
use std::path::PathBuf;

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The manifest has no command line.
    #[error("the manifest holds no command line of QEMU; start the machine by hand on its disks")]
    NoCommandLine,
    /// An option needs something that a second machine can't have.
    #[error("{option} can't be started again: {why}; {what_to_do}")]
    Unsafe {
        /// The option as it stands on the command line.
        option: String,
        /// Why not.
        why: String,
        /// What to do.
        what_to_do: String,
    },
    /// A restored disk that the manifest does not have.
    #[error("the manifest has no disk {disk:?}")]
    UnknownDisk {
        /// Its id.
        disk: String,
    },
    /// A disk that the command line does not have.
    #[error(
        "disk {disk:?} ({address}) is not on the command line, so it was plugged in later; \
         start the machine by hand and add it"
    )]
    DiskNotOnCommandLine {
        /// Its id.
        disk: String,
        /// Its address.
        address: String,
    },
    /// A writable disk without a restored image.
    #[error(
        "no restored image takes the place of the writable disk {option}, and the old one may \
         belong to a running guest; restore it as well, or give an image for it"
    )]
    DiskNotRestored {
        /// The option that defines it.
        option: String,
    },
    /// A read-only disk that is no longer there.
    #[error("the read-only disk {option} was not restored and {address} is no longer there")]
    DiskMissing {
        /// The option that defines it.
        option: String,
        /// Where it was.
        address: String,
    },
    /// A network back end that only a tap device can stand in for.
    #[error(
        "network device {id:?} sat on {kind}, and a live state of it does not load on a user-mode \
         network; start with no network or with the original one, or boot without the live state"
    )]
    UserNetwork {
        /// Id of the back end.
        id: String,
        /// Its kind.
        kind: String,
    },
    /// A path that is not UTF-8.
    #[error("{} is not UTF-8; choose another path", .0.display())]
    Path(PathBuf),
}

/// Why a plan did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The log could not be opened.
    #[error("the log {} could not be opened", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The plan and what comes in do not belong together.
    #[error("{}", match expected {
        true => "the plan starts from a live state, but none was given",
        false => "the plan starts without a live state, but one was given",
    })]
    IncomingMismatch {
        /// The plan starts from a live state.
        expected: bool,
    },
    /// The program could not be run.
    #[error("{program} could not be run")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU ended before its QMP socket answered.
    #[error("QEMU ended at once ({status}); the end of its log: {tail}")]
    EndedEarly {
        /// Its exit status.
        status: String,
        /// The end of its log.
        tail: String,
    },
    /// The QMP socket never appeared.
    #[error("QEMU's QMP socket did not appear within {seconds} s; the end of its log: {tail}")]
    NoSocket {
        /// How long was waited.
        seconds: u64,
        /// The end of its log.
        tail: String,
    },
}
