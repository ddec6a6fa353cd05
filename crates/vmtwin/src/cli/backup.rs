//! Arguments of `backup`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::twin_args::TwinArgs;

/// Consistency of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Consistency {
    /// Disks that every application finds cleanly closed: a twin of the guest is shut down
    Application,
    /// Memory and disks at one instant: the guest can be resumed from it
    State,
    /// Disks whose file systems the guest's agent froze at the point: no journal to replay
    Filesystem,
    /// Disks alone at one instant, as after a power cut
    Crash,
}

impl Consistency {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Consistency::Application => "application",
            Consistency::State => "state",
            Consistency::Filesystem => "filesystem",
            Consistency::Crash => "crash",
        }
    }
}

/// What a backup may fall back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fallback {
    /// Disks alone at one instant
    Crash,
}

/// Order of several guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// As given
    Fixed,
    /// Shuffled
    Random,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin backup web01
  vmtwin backup web01 db01 --order random --json
  vmtwin backup web01 --or crash
  vmtwin backup web01 --consistency state      to resume the running machine from it
  vmtwin backup web01 --also offsite           into a further repository too, at the same point

The guest is paused for some milliseconds; the data is read and stored while it runs. A backup that
cannot keep the consistency asked for fails, unless --or allows a lesser one; it is labelled as what
it is. A backup that fails or is cancelled leaves no snapshot, and the guest runs on.")]
pub(crate) struct BackupArgs {
    /// Guests, by name
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
    /// Promise that the backup keeps, or fails
    #[arg(long, value_enum, default_value = "application")]
    pub(crate) consistency: Consistency,
    /// What it may fall back to when the promise cannot be kept (exit code 3)
    #[arg(long = "or", value_enum)]
    pub(crate) or: Option<Fallback>,
    /// Further repository that the point goes to, instead of those set for the guest (may be given more
    /// than once; see `repo add`)
    #[arg(long, value_name = "NAME")]
    pub(crate) also: Vec<String>,
    /// Read everything, even where it is known what changed
    #[arg(long)]
    pub(crate) full: bool,
    /// Order of several guests
    #[arg(long, value_enum, default_value = "fixed")]
    pub(crate) order: Order,
    /// Label of the snapshot, for `snapshot forget --keep-tag` (may be given more than once)
    #[arg(long = "tag", value_name = "TAG", value_parser = parse_tag)]
    pub(crate) tags: Vec<String>,
    /// Folder for scratch images [default: in the home folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) capture: CaptureArgs,
    #[command(flatten)]
    pub(crate) twin: TwinArgs,
}

/// A label: no comma, by which restic separates them, and none that looks like our own.
pub(super) fn parse_tag(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains([',', '=']) || text.chars().any(char::is_control) {
        true => Err("a tag is some text without comma and equals sign".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Limits of a capture.
#[derive(Debug, Clone, Args)]
pub(crate) struct CaptureArgs {
    /// Memory the spool may hold before it uses the disk, MiB; up to 512 more while the disk is behind
    #[arg(long, value_name = "MIB", default_value = "64")]
    pub(crate) spool_memory_mib: u64,
    /// Longest time for the memory stream; after it the capture is given up, seconds
    #[arg(long, value_name = "S", default_value = "600")]
    pub(crate) memory_deadline_s: u64,
    /// Longest pause; after it the guest is resumed and the backup fails, milliseconds
    #[arg(long, value_name = "MS", default_value = "1500")]
    pub(crate) pause_deadline_ms: u64,
    /// Longest work on huge pages before the pause, which shortens it, seconds (0: none)
    #[arg(long, value_name = "S", default_value = "30")]
    pub(crate) collapse_limit_s: u64,
    /// Longest time for the guest's agent to freeze file systems (`--consistency filesystem`), seconds
    #[arg(long, value_name = "S", default_value = "10")]
    pub(crate) freeze_limit_s: u64,
}
