//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why files cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// No kernel to start the machine with.
    #[error(
        "reading file systems needs a Linux kernel with its modules, and none is in /boot; install \
         one (apt install linux-image-cloud-amd64), or name one in VMTWIN_APPLIANCE_KERNEL and its \
         modules' folder in VMTWIN_APPLIANCE_MODULES"
    )]
    NoKernel,
    /// A file that the machine is made of.
    #[error("cannot {what} {}: {source}", .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program is not there, or does not start.
    #[error("cannot run {program}: {source}; install {package}")]
    Program {
        /// Its name.
        program: String,
        /// What it comes with.
        package: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Failed {
        /// Its name.
        program: String,
        /// What it said.
        message: String,
    },
    /// Too many disks for the machine.
    #[error("{disks} disks are more than the {most} that one machine can read; name one of them")]
    TooManyDisks {
        /// How many.
        disks: usize,
        /// How many would do.
        most: usize,
    },
    /// The machine ended, or says nothing any more.
    #[error("the machine that reads the file systems {what}{}", ended(.console))]
    Machine {
        /// What happened.
        what: &'static str,
        /// The last lines of its console.
        console: String,
    },
    /// The machine says what makes no sense: it may have been taken over by what it reads.
    #[error("the machine that reads the file systems says nonsense: {0}")]
    Nonsense(String),
    /// The machine refused a request.
    #[error("{0}")]
    Refused(String),
    /// Where files are written to.
    #[error("cannot {what} {name}: {source}")]
    Target {
        /// What was tried.
        what: &'static str,
        /// Name of the file, escaped.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

fn ended(console: &str) -> String {
    match console {
        "" => String::new(),
        text => format!("; its last words:\n{text}"),
    }
}

impl ApplianceError {
    /// For `map_err`.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ApplianceError::File { what, path, source }
    }
}
