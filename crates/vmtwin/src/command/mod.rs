//! The commands, one file a noun.

pub(crate) mod catalog;
pub(crate) mod cluster;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod files;
pub(crate) mod forget;
pub(crate) mod init;
pub(crate) mod metrics;
pub(crate) mod notify;
pub(crate) mod repo;
pub(crate) mod restore;
pub(crate) mod schedule;
pub(crate) mod shell;
pub(crate) mod snapshot;
pub(crate) mod token;
pub(crate) mod upkeep;
pub(crate) mod vm;

use crate::cli::Command;

/// Whether a command is of this machine alone, and never sent to a server.
pub(crate) fn is_local(command: &Command) -> bool {
    matches!(
        command,
        Command::Completions { .. } | Command::Man { .. } | Command::Serve(_)
    )
}
