//! Why there is no finished disk.

use std::io;
use std::path::PathBuf;

use crate::launch::{LaunchError, StartError, TpmError};
use crate::qmp::QmpError;

/// Why a twin could not be made, or did not end by its own shutdown. Its guest is not concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TwinError {
    /// Something of the guest cannot be had twice.
    #[error("no twin of this guest can be made")]
    Launch(#[source] LaunchError),
    /// The host has no memory for it.
    #[error(
        "the twin needs {needed_mib} MiB of memory and the host has {available_mib} MiB to spare; \
         back up when it has more, or use another consistency"
    )]
    NoRoom {
        /// What the guest's process holds now, and what the spool may, MiB.
        needed_mib: u64,
        /// `MemAvailable`, MiB.
        available_mib: u64,
    },
    /// An overlay could not be made.
    #[error("cannot make the overlay {}: {reason}", path.display())]
    Overlay {
        /// The overlay.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Its TPM could not be started.
    #[error("the twin's TPM did not start")]
    Tpm(#[from] TpmError),
    /// QEMU did not start.
    #[error("the twin did not start")]
    Start(#[from] StartError),
    /// QEMU did not take the state.
    #[error("the twin had not taken its state after {seconds} s; the end of its log: {tail}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The end of its log.
        tail: String,
    },
    /// It was resumed and no processor of it has run.
    #[error("the twin does not execute")]
    NotExecuting,
    /// QEMU ended.
    #[error("the twin's QEMU ended{how}; the end of its log: {tail}")]
    Ended {
        /// Exit code or signal, where that is known.
        how: String,
        /// The end of its log.
        tail: String,
    },
    /// QEMU did not end.
    #[error("the twin's QEMU does not end")]
    StillThere,
    /// It could not be killed.
    #[error("the twin's QEMU could not be killed")]
    Kill(#[source] io::Error),
    /// It did not power off.
    #[error(
        "the twin had not powered off {seconds} s after its power button was pressed: its \
         operating system ignores the button, or needs longer (--twin-deadline-s); keys or a \
         command on its console may help (--twin-keys, --twin-console)"
    )]
    NotInTime {
        /// The deadline.
        seconds: u64,
    },
    /// A command could not be typed on its console.
    #[error("the twin has no console that a command can be typed on (--twin-console): {reason}")]
    NoConsole {
        /// Why not.
        reason: String,
    },
    /// It reset instead.
    #[error("the twin restarted instead of powering off")]
    Restarted,
    /// It panicked.
    #[error("the twin's operating system panicked")]
    Panicked,
    /// It went to sleep instead.
    #[error(
        "the twin went to sleep instead of powering off: set what its power button does to 'shut \
         down' in the guest"
    )]
    Asleep,
    /// It stopped for a reason that QEMU gives.
    #[error("the twin stopped: {reason}")]
    Stopped {
        /// QEMU's word.
        reason: String,
    },
    /// Its network may lead somewhere.
    #[error("network interface {tap} cannot be cut off: {reason}")]
    NotCutOff {
        /// The interface on the host.
        tap: String,
        /// Why not.
        reason: String,
    },
    /// It could not take its guest's place.
    #[error("the twin cannot take its guest's place: disk {disk}: {reason}")]
    Promotion {
        /// The guest's disk.
        disk: String,
        /// Why it could not be put under its scratch image.
        reason: String,
    },
    /// Nothing showed that it came up.
    #[error(
        "no sign of life within {seconds} s: its console said nothing that was waited for, and its \
         screen is blank or keeps changing{}",
        screenshot.as_ref().map_or(String::new(), |path| format!("; look at {}", path.display()))
    )]
    NoSign {
        /// How long was waited.
        seconds: u64,
        /// The last picture of its screen.
        screenshot: Option<PathBuf>,
    },
    /// One of its disks gave it an error, so what its shutdown wrote may be missing.
    #[error("disk {device} gave the twin an error ({operation}): {reason}")]
    Disk {
        /// The device.
        device: String,
        /// `read` or `write`.
        operation: String,
        /// QEMU's reason.
        reason: String,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
    /// Talking to QEMU failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// A socket could not be made.
    #[error("a socket could not be made")]
    Io(#[source] io::Error),
}
