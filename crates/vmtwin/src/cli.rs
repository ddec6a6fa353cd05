//! The command line: every flag with its help, in this file and its folder.

mod backup;
pub(crate) mod files;
mod notify;
pub(crate) mod repo;
mod restore;
mod schedule;
mod serve;
mod upkeep;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(crate) use backup::{BackupArgs, CaptureArgs, Consistency, Fallback, Order};
pub(crate) use notify::{NotifyAddArgs, NotifyCommand};
pub(crate) use restore::{ExportArgs, Format, Network, RestoreArgs};
pub(crate) use schedule::{ScheduleAddArgs, ScheduleCommand};
pub(crate) use serve::{ServeArgs, TokenCommand};
pub(crate) use upkeep::{
    CheckArgs, CopyArgs, ForgetArgs, KeepArgs, PruneArgs, SnapshotCommand, VerifyArgs,
};

use crate::cluster::Recipients;
use crate::twin_args::TwinArgs;

/// Live backup of QEMU/KVM guests: milliseconds of pause, nothing installed in the guest.
#[derive(Debug, Parser)]
#[command(name = "vmtwin", version, max_term_width = 100, after_help = TOP_EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const TOP_EXAMPLES: &str = "Examples:
  vmtwin init                                     make a repository and a catalog
  vmtwin vm add web01 --qmp /run/web01.qmp        put a guest into the table
  vmtwin vm add --libvirt qemu:///system          follow all guests of libvirt
  vmtwin backup web01                             back it up while it runs
  vmtwin snapshot list
  vmtwin restore latest --to /var/restored --run  start it from the point

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with warnings.";

/// `2026-11-23T12:00:00Z`.
fn point(text: &str) -> Result<time::OffsetDateTime, String> {
    let format = &time::format_description::well_known::Rfc3339;
    let wrong = |_| format!("{text:?} is no time such as 2026-11-23T12:00:00Z");
    time::OffsetDateTime::parse(text, format).map_err(wrong)
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// File of defaults of options [default: config.toml in the home folder, else
    /// /etc/vmtwin/config.toml]
    #[arg(long, global = true, env = "VMTWIN_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of catalog, settings, spool and scratch [default: the user's data folder]
    #[arg(long, global = true, env = "VMTWIN_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Repository: a folder, s3://BUCKET/PREFIX, or a name of `repo add` [default: what `init` was given]
    #[arg(long, global = true, env = "VMTWIN_REPO", value_name = "URL")]
    pub(crate) repo: Option<String>,
    /// PostgreSQL database that holds the catalog, postgres://USER@HOST/DATABASE [default: what
    /// `catalog move` was given, else a file in the home folder]
    #[arg(
        long,
        global = true,
        env = "VMTWIN_DATABASE",
        value_name = "URL",
        hide_env_values = true,
        value_parser = crate::command::catalog::database_url
    )]
    pub(crate) database: Option<String>,
    /// File whose first line is the repository's password
    #[arg(long, global = true, env = "VMTWIN_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Command that prints the repository's password
    #[arg(
        long,
        global = true,
        env = "VMTWIN_PASSWORD_COMMAND",
        value_name = "COMMAND"
    )]
    pub(crate) password_command: Option<String>,
    /// Remove forgotten snapshots only this long after: 12h, 7d, 8w [default: at once]
    #[arg(
        long,
        global = true,
        env = "VMTWIN_DELETION_DELAY",
        value_name = "TIME",
        value_parser = upkeep::parse_age
    )]
    pub(crate) deletion_delay: Option<time::Duration>,
    /// In S3 with object lock: let nobody remove what is written before this time: 30d, 8w [default: no lock]
    #[arg(
        long,
        global = true,
        env = "VMTWIN_OBJECT_LOCK",
        value_name = "TIME",
        value_parser = upkeep::parse_age
    )]
    pub(crate) object_lock: Option<time::Duration>,
    /// Public keys of age that secrets in backups of the cluster are sealed for: age1…,age1…
    #[arg(
        long,
        global = true,
        env = "VMTWIN_SECRETS_RECIPIENT",
        value_name = "KEYS"
    )]
    pub(crate) secrets_recipient: Option<Recipients>,
    /// In S3 with versions: the repository as it was then, whatever was removed since (RFC 3339)
    #[arg(long, global = true, value_name = "TIME", value_parser = point)]
    pub(crate) as_of: Option<time::OffsetDateTime>,
    /// One JSON document on stdout; logs and progress stay on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress bars
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Run the command on the host where a `vmtwin serve` is; paths are that host's [token: VMTWIN_TOKEN]
    #[arg(
        long,
        global = true,
        env = "VMTWIN_SERVER",
        value_name = "URL",
        help_heading = "Server"
    )]
    pub(crate) server: Option<String>,
    /// Certificate that the server's must be signed by, PEM [default: what this machine trusts]
    #[arg(
        long,
        global = true,
        env = "VMTWIN_SERVER_CA",
        value_name = "FILE",
        help_heading = "Server"
    )]
    pub(crate) server_ca: Option<PathBuf>,
    /// File whose first line is the token for the server
    #[arg(
        long,
        global = true,
        env = "VMTWIN_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Server"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Started by another vmtwin: progress in lines, and the end of stdin is a Ctrl-C
    #[arg(long, global = true, hide = true)]
    pub(crate) worker: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a repository and a catalog
    #[command(after_help = "Examples:\n  vmtwin init --repo /backup/vms\n  \
        vmtwin init --repo s3://bucket/vms\n  \
        vmtwin init --repo s3:https://s3.example.net:9000/bucket/vms\n\n\
        For S3, the keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or from \
        ~/.aws/credentials (AWS_PROFILE), the service and its region from the location or from \
        AWS_ENDPOINT_URL and AWS_REGION, certificates of your own from AWS_CA_BUNDLE. Keys are \
        never kept: every command needs them. A missing bucket is made.\n\n\
        The password comes from \
        VMTWIN_PASSWORD, --password-file or --password-command. Where there is none, one is made, \
        shown once, and kept in the home folder for this user alone. Write it down: without it \
        nothing can be restored.")]
    Init,
    /// Further repositories, which backups go to as well
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// The table of guests
    #[command(subcommand)]
    Vm(VmCommand),
    /// Back up guests while they run
    Backup(BackupArgs),
    /// Look at what was backed up
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Give a guest back: its disks, or the running machine
    Restore(RestoreArgs),
    /// Serve the disks of a snapshot over NBD, read-only
    Export(ExportArgs),
    /// Keep a twin of a guest in memory, to take its place when it fails
    #[command(subcommand)]
    Twin(TwinCommand),
    /// Turn a stored state into disks that every application finds cleanly closed
    Settle(SettleArgs),
    /// Remove from the repository what no snapshot needs
    Prune(PruneArgs),
    /// Check the repository, and say which snapshots and disks each damage hurts
    Check(CheckArgs),
    /// Copy snapshots to another repository
    Copy(CopyArgs),
    /// Show what guests' snapshots and the repository take
    #[command(after_help = "Examples:\n  vmtwin stats\n  vmtwin stats web01 --json")]
    Stats {
        /// Of this guest only
        vm: Option<String>,
    },
    /// Back up the configuration of a cluster's hosts, and the database they share
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Follow schedules, serve the API and the pages, and answer the other nodes of a cluster
    Serve(Box<ServeArgs>),
    /// Who may use the API and the pages of `vmtwin serve`
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look after the catalog: copy it, move it to a database that hosts share
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Have guests backed up by themselves
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Have people told of what goes wrong: by webhook, mail or command
    #[command(subcommand)]
    Notify(NotifyCommand),
    /// Print figures for Prometheus
    #[command(after_help = "Examples:\n  vmtwin metrics\n  vmtwin metrics --out \
        /var/lib/prometheus/node-exporter/vmtwin.prom     for node_exporter's textfile collector\n\n\
        `vmtwin serve` serves the same at /metrics. Alert rules and a board for Grafana are in \
        /usr/share/vmtwin.")]
    Metrics {
        /// Write them to this file, at once or not at all
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Undo what a crash left behind: a paused guest, filters, exports, files, locks
    #[command(
        after_help = "Every command that touches guests does this first, so it is seldom \
        needed by hand. It never touches what a backup that still runs is using."
    )]
    Recover,
    /// Look whether this host has what backups need, and say how to mend what it has not
    #[command(
        after_help = "Nothing is changed. Exit code 3 with warnings, 1 where backups do not work."
    )]
    Doctor,
    /// Print what a shell completes commands by
    #[command(after_help = "Example:\n  vmtwin completions bash >/etc/bash_completion.d/vmtwin")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder
    #[command(after_help = "Example:\n  vmtwin man /usr/local/share/man/man1")]
    Man {
        /// Folder; made if it is not there
        dir: PathBuf,
    },
    /// The guard of one undo (internal)
    #[command(name = crate::backup::freeze::UNDO_GUARD, hide = true)]
    UndoGuard,
    /// The pause guard (internal)
    #[command(name = "pause-guard", hide = true)]
    PauseGuard,
    /// Process 1 of the machine that reads file systems (internal)
    #[command(name = crate::files::INIT_COMMAND, hide = true)]
    ApplianceInit,
    /// The restore guard (internal)
    #[command(name = "restore-guard", hide = true)]
    RestoreGuard,
    /// QMP on stdin, through libvirt (internal)
    #[command(name = "libvirt-monitor", hide = true)]
    LibvirtMonitor {
        /// Of libvirt
        uri: String,
        /// Of the domain
        uuid: String,
    },
}

pub(crate) use crate::cluster::cli::ClusterCommand;

#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// Show where it is and what it holds
    Show,
    /// Read all of it and say whether it is whole
    Check,
    /// Write a complete copy, of one instant, to a file
    #[command(
        after_help = "Example:\n  vmtwin catalog dump /backup/catalog.jsonl\n\nThe copy can be \
        loaded into a file or a PostgreSQL database, by this or a later version. It is never \
        written over a file that exists."
    )]
    Dump {
        /// File to make; - for stdout
        file: PathBuf,
    },
    /// Make the catalog what a copy holds: all of it or nothing
    #[command(after_help = "Example:\n  vmtwin catalog load /backup/catalog.jsonl --force")]
    Load {
        /// Copy that `catalog dump` made
        file: PathBuf,
        /// Replace what the catalog holds, also under jobs of hosts that are gone or silent; a copy of it
        /// is kept in the home folder
        #[arg(long)]
        force: bool,
    },
    /// Move to a PostgreSQL database that hosts share, or back to the file
    #[command(
        after_help = "Examples:\n  vmtwin catalog move --to postgres://vmtwin@db.example.net/vmtwin\n  \
        vmtwin catalog move --to file --force\n\nThe password is taken from PGPASSWORD or \
        ~/.pgpass. Every row is counted and hashed on both sides before the move counts; the old \
        catalog stays as it was, and starts no job any more. Other hosts then only need \
        --database (or VMTWIN_DATABASE)."
    )]
    Move {
        /// postgres://USER@HOST/DATABASE, or the word file
        #[arg(long, value_name = "URL", value_parser = crate::command::catalog::place)]
        to: String,
        /// Replace what is there, also under jobs of hosts that are gone or silent; a copy of it is kept in
        /// the home folder
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Put a guest into the table
    #[command(
        after_help = "Examples:\n  vmtwin vm add --libvirt qemu:///system\n  vmtwin vm add web01 \
        --libvirt qemu:///system\n  vmtwin vm add web01 --qmp /run/web01.qmp\n\nA guest of libvirt \
        needs nothing. With no name all domains are added, and new ones later by themselves.\n\n\
        With --qmp, QEMU must \
        have been started with a monitor of its own for vmtwin, since a monitor serves one client \
        at a time:\n  -qmp unix:/run/web01.qmp,server=on,wait=off"
    )]
    Add {
        /// Name in the table; a domain has its name in libvirt
        #[arg(required_unless_present = "libvirt")]
        name: Option<String>,
        /// QMP socket of the guest
        #[arg(long, value_name = "SOCKET", required_unless_present = "libvirt")]
        qmp: Option<PathBuf>,
        /// Connection to the libvirt of this host
        #[arg(long, value_name = "URI", conflicts_with = "qmp")]
        libvirt: Option<String>,
    },
    /// List the guests, as QEMU reports them now
    List,
    /// Show a guest: its disks, where they lie, what would block a backup
    Show {
        /// Name in the table
        name: String,
    },
    /// Set how a guest's twin is shut down, and which further repositories its backups go to
    #[command(
        after_help = "Examples:\n  vmtwin vm set win01 --twin-keys ret --twin-wait-s 5\n  vmtwin vm \
        set appliance --twin-console 'system shutdown confirm'\n  vmtwin vm set web01 --also offsite\n  vmtwin vm set win01 --clear\n\n\
        Options of a backup or of settle come before what is set here."
    )]
    Set {
        /// Name in the table
        name: String,
        /// Forget what was set before
        #[arg(long)]
        clear: bool,
        /// Further repository that its backups go to (may be given more than once; see `repo add`)
        #[arg(long, value_name = "NAME")]
        also: Vec<String>,
        /// Group that it is in, for schedules (may be given more than once)
        #[arg(long = "group", value_name = "GROUP", value_parser = crate::twin_args::group)]
        groups: Vec<String>,
        #[command(flatten)]
        twin: TwinArgs,
    },
    /// Take a guest out of the table; its snapshots stay
    Remove {
        /// Name in the table
        #[arg(required_unless_present = "libvirt")]
        name: Option<String>,
        /// Follow this libvirt no more, and take all its guests out
        #[arg(long, value_name = "URI", conflicts_with = "name")]
        libvirt: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TwinCommand {
    /// Make a twin of a running guest
    Start(TwinStartArgs),
    /// List the standbys: of which guest, how old their state is
    List,
    /// Put a standby in its guest's place
    Promote {
        /// Name of the twin
        twin: String,
        /// Kill the guest if it still runs
        #[arg(long)]
        force: bool,
    },
    /// Remove a standby; its guest runs on
    Stop {
        /// Name of the twin
        twin: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin twin start web01 --standby
  vmtwin twin start web01 --standby --fence 'ipmitool -H host2 power off' --foreground

The twin has the guest's memory and disks of one instant, and stands still. When the guest panics or
its process is gone without having been shut down, the guest's process is killed, the fencing command
must succeed, and the twin goes on in its place from that instant, on the guest's bridge. What the
guest did since is lost. While a standby is kept, the guest's writes keep old data in the home
folder, and no backup of the guest is made.")]
pub(crate) struct TwinStartArgs {
    /// Guest, by name
    pub(crate) vm: String,
    /// Keep it paused, to take the guest's place when that fails
    #[arg(long)]
    pub(crate) standby: bool,
    /// Name of the twin [default: VM-twin]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Command that must succeed before the twin is promoted
    #[arg(long, value_name = "COMMAND")]
    pub(crate) fence: Option<String>,
    /// Never promote by itself: wait for `twin promote`
    #[arg(long)]
    pub(crate) by_hand: bool,
    /// Stay in the foreground, for a service manager
    #[arg(long)]
    pub(crate) foreground: bool,
    #[command(flatten)]
    pub(crate) capture: CaptureArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin settle latest
  vmtwin settle 1a2b3c4d --scratch /var/tmp --accel tcg

A twin is started from the stored state, cut off from any network, and shut down by its own
operating system. What it leaves is stored as a new snapshot of the same point, which refers to the
first; the first stays as it is. Needs room for the disks in the scratch folder, and the guest's
memory; works on any host that can run the machine, whether the guest runs or not.")]
pub(crate) struct SettleArgs {
    /// Id of a snapshot with memory, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Folder for the twin's disks [default: in the home folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Accelerator of the twin, such as kvm or tcg [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<String>,
    #[command(flatten)]
    pub(crate) twin: TwinArgs,
}
