//! The command line: every flag with its help, in one place.

pub(crate) mod files;
pub(crate) mod repo;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
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
    /// One JSON document on stdout; logs and progress stay on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress bars
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
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
    /// Look after the catalog: copy it, move it to a database that hosts share
    #[command(subcommand)]
    Catalog(CatalogCommand),
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
        /// Replace what the catalog holds; a copy of that is kept in the home folder
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
        /// Replace what is there; a copy of that is kept in the home folder
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

/// Consistency of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consistency {
    /// Disks that every application finds cleanly closed: a twin of the guest is shut down
    Application,
    /// Memory and disks at one instant: the guest can be resumed from it
    State,
    /// File systems frozen by the guest's agent (not in this version)
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
fn parse_tag(text: &str) -> Result<String, String> {
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

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// List snapshots, oldest first
    List {
        /// Of this guest only
        vm: Option<String>,
        /// In further repositories too, and which of them hold each point
        #[arg(long)]
        all_repos: bool,
    },
    /// Show one snapshot: point, disks, memory, machine
    Show {
        /// Id, the first digits of it, or `latest`
        id: String,
    },
    /// List file systems and files in the disks of a snapshot
    Ls(files::LsArgs),
    /// Copy files and folders out of the disks of a snapshot
    Get(files::GetArgs),
    /// Prove that a snapshot can be restored: read all of it, or boot it
    Verify(VerifyArgs),
    /// Remove snapshots: those named, or those that no rule keeps
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin snapshot forget 1a2b3c4d
  vmtwin snapshot forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  vmtwin snapshot forget --vm web01 --keep-within 30d --keep-tag gold --prune

Rules apply to the snapshots of each guest on each host; a snapshot stays if any rule keeps it.
Periods are UTC. Needs the repository to itself, as restic's forget does; space is freed by prune.")]
pub(crate) struct ForgetArgs {
    /// Snapshots to remove: ids, or the first digits of them
    #[arg(value_name = "ID", conflicts_with_all = ["vm", "keep_last", "keep_hourly", "keep_daily",
        "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tag"])]
    pub(crate) ids: Vec<String>,
    /// Apply the rules to this guest only
    #[arg(long, value_name = "NAME")]
    pub(crate) vm: Option<String>,
    /// Keep the newest N
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_last: u32,
    /// Keep the newest of each of the newest N hours that have any
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_hourly: u32,
    /// The same for days
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_daily: u32,
    /// The same for weeks
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_weekly: u32,
    /// The same for months
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_monthly: u32,
    /// The same for years
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(crate) keep_yearly: u32,
    /// Keep all within this time before the newest one: 12h, 30d, 8w
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    pub(crate) keep_within: Option<time::Duration>,
    /// Keep all with this tag (may be given more than once)
    #[arg(long, value_name = "TAG")]
    pub(crate) keep_tag: Vec<String>,
    /// Show what stays, what goes, and by which rule
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Then prune
    #[arg(long)]
    pub(crate) prune: bool,
    /// Allow rules that keep nothing of a guest
    #[arg(long)]
    pub(crate) force: bool,
}

impl ForgetArgs {
    /// The rules given.
    pub(crate) fn rules(&self) -> anyhow::Result<vmtwin_repository::KeepRules> {
        Ok(vmtwin_repository::KeepRules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            tags: self.keep_tag.clone(),
        })
    }
}

/// `12h`, `30d`, `8w`.
fn parse_age(text: &str) -> Result<time::Duration, String> {
    let wrong = || format!("{text:?} is no time such as 12h, 30d or 8w");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: i64 = match unit {
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let count: u16 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(time::Duration::seconds(seconds * i64::from(count)))
}

/// `5` or `5%`, 0 to 100.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("{text:?} is no percentage from 0 to 100")),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin prune --dry-run
  vmtwin prune --max-unused 0
  vmtwin prune --wait-s 3600

May be run while backups run, here or elsewhere: the long part only adds. Removing needs the
repository to itself for a moment; where a backup or restore still runs then, nothing is removed
(exit code 3), and the next prune does it.")]
pub(crate) struct PruneArgs {
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Unused bytes that may stay, in percent of the used ones
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse_percent)]
    pub(crate) max_unused: f64,
    /// How long to wait for running backups and restores, seconds
    #[arg(long, value_name = "S", default_value = "0")]
    pub(crate) wait_s: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin check
  vmtwin check --read-data          read every pack and compare all hashes
  vmtwin check --read-data=10%      of a random tenth of the packs
  vmtwin check --repair --read-data

Exit code 1 where anything is damaged. --repair makes the index list what is really there, so that
the next full backup stores again what is lost; it removes no snapshot and no pack.")]
pub(crate) struct CheckArgs {
    /// Read the data too, or a part of it
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true,
        default_missing_value = "100%", value_parser = parse_percent)]
    pub(crate) read_data: Option<f64>,
    /// Repair the index first
    #[arg(long)]
    pub(crate) repair: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin copy --to /mnt/offsite --to-password-file /root/offsite.pw
  vmtwin copy --to /mnt/offsite --vm web01
  vmtwin copy --to /mnt/offsite 1a2b3c4d

Copies from the repository of --repo. What is there already is passed over; a copy that was
interrupted goes on where it was. The password may also be in VMTWIN_TO_PASSWORD.")]
pub(crate) struct CopyArgs {
    /// Repository to copy to; it must exist
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// File whose first line is that repository's password
    #[arg(long, env = "VMTWIN_TO_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) to_password_file: Option<PathBuf>,
    /// Command that prints that repository's password
    #[arg(long, env = "VMTWIN_TO_PASSWORD_COMMAND", value_name = "COMMAND")]
    pub(crate) to_password_command: Option<String>,
    /// Snapshots: ids, or the first digits of them [default: all of guests]
    #[arg(value_name = "ID", conflicts_with = "vm")]
    pub(crate) ids: Vec<String>,
    /// All of this guest
    #[arg(long, value_name = "NAME")]
    pub(crate) vm: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin snapshot verify latest                          read everything, compare all hashes
  vmtwin snapshot verify latest --boot                   boot it, isolated, and see it come up
  vmtwin snapshot verify 1a2b --boot --expect 'login:'   until its console shows this

With --boot the guest is restored to the scratch folder and started with a network that leads
nowhere, from the live state where the snapshot has one. It has come up when its guest agent answers,
or its console speaks or its screen rests and it still runs some seconds later. Then it is thrown away. The result is kept
in the catalog, the last picture of its screen in the home folder.")]
pub(crate) struct VerifyArgs {
    /// Id of the snapshot, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Boot it
    #[arg(long)]
    pub(crate) boot: bool,
    /// Text that its console must show
    #[arg(long, value_name = "TEXT", requires = "boot")]
    pub(crate) expect: Option<String>,
    /// Longest wait until it has come up, seconds
    #[arg(long, value_name = "S", default_value = "180")]
    pub(crate) limit_s: u64,
    /// How long a sign of life must last, seconds
    #[arg(long, value_name = "S", default_value = "10")]
    pub(crate) settle_s: u64,
    /// Folder for its disks [default: in the home folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Accelerator, such as kvm or tcg [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<String>,
}

/// Image format of restored disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// qcow2
    Qcow2,
    /// Raw, sparse
    Raw,
}

/// Network of a restored guest that is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Cables that lead nowhere: harmless beside the original
    None,
    /// QEMU's user-mode network: out through this host
    User,
    /// As it was: only when the original is gone
    Original,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin restore latest --to /var/restored             disks only, in their format
  vmtwin restore 1a2b3c4d --to /var/restored --run     the running machine, from the point
  vmtwin restore 1a2b3c4d --to /var/restored --instant the same at once: blocks come in behind it
  vmtwin restore 1a2b3c4d --to /mnt/x --format raw --disk disk1
  vmtwin restore 1a2b3c4d --to /var/lib/libvirt/images/web02 --libvirt qemu:///system --as web02

With --libvirt the guest is defined again, on the restored disks, from its definition at the time of
the backup. With --as it is a copy with a uuid and MAC addresses of its own; without, it is the same
domain, which must be gone. What differs is shown before anything is written. It is not started.

With --instant the guest runs on overlays, and reads from the repository what is not here yet. Ctrl-C
leaves that to go on by itself. Until all is here the same command goes on with it, after a reboot
too, with all that the guest wrote.

Needs the repository and its password, nothing else. Without --force nothing is overwritten.")]
pub(crate) struct RestoreArgs {
    /// Id of the snapshot, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Folder to restore to [default: ./NAME-ID]
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// New name of the guest
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Define it in this libvirt again
    #[arg(long, value_name = "URI", conflicts_with_all = ["run", "instant", "format", "disks"])]
    pub(crate) libvirt: Option<String>,
    /// Start the guest from the point, on the restored disks
    #[arg(long)]
    pub(crate) run: bool,
    /// Start the guest at once, while its disks come in behind it
    #[arg(long, requires = "to", conflicts_with_all = ["format", "disks", "memory", "force"])]
    pub(crate) instant: bool,
    /// With --instant: return once the guest runs
    #[arg(long, requires = "instant")]
    pub(crate) detach: bool,
    /// With --instant: most MiB per second to bring in [default: no limit]
    #[arg(
        long,
        value_name = "MIB",
        requires = "instant",
        default_value = "0",
        hide_default_value = true
    )]
    pub(crate) limit_mib_per_s: u64,
    /// Format of the disks [default: as they were]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Only this disk (may be given more than once)
    #[arg(long = "disk", value_name = "ID")]
    pub(crate) disks: Vec<String>,
    /// Also write the memory as a stream for QEMU's -incoming file:
    #[arg(long)]
    pub(crate) memory: bool,
    /// Network of the started guest
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) network: Network,
    /// Accelerator of the started guest, such as kvm or tcg [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<String>,
    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin export latest                                 until Ctrl-C; prints the NBD URIs
  vmtwin export 1a2b3c4d --disk disk0 --socket /run/disk0.sock
  vmtwin export latest --listen 127.0.0.1:10809
  nbdcopy 'nbd+unix:///disk0?socket=/run/disk0.sock' disk0.raw

Nothing is restored: blocks are read from the repository as they are asked for, and holes are told
to who asks for them. Every disk is an export of its id's name. Writes are refused. The repository
is locked, shared with backups and restores, until the end. There is no TLS.")]
pub(crate) struct ExportArgs {
    /// Id of the snapshot, the first digits of it, or `latest`
    pub(crate) id: String,
    /// Only this disk (may be given more than once)
    #[arg(long = "disk", value_name = "ID")]
    pub(crate) disks: Vec<String>,
    /// Unix socket to listen on [default: one in the home folder]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Listen on TCP instead; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "socket")]
    pub(crate) listen: Option<String>,
    /// Listen on another address than this machine's own: whoever reaches it reads the disks
    #[arg(long, requires = "listen")]
    pub(crate) allow_remote: bool,
}
