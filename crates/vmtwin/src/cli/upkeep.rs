//! Arguments of `snapshot`, and of what looks after a repository.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::files;

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
    /// List snapshots that were forgotten and stay until the deletion delay is over
    Forgotten,
    /// Take back that snapshots were forgotten, while they are there
    #[command(
        after_help = "Examples:\n  vmtwin snapshot forgotten\n  vmtwin snapshot keep 1a2b3c4d\n  \
        vmtwin snapshot keep --all"
    )]
    Keep(KeepArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmtwin snapshot forget 1a2b3c4d
  vmtwin snapshot forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  vmtwin snapshot forget --vm web01 --keep-within 30d --keep-tag gold --prune
  vmtwin snapshot forget --due

Rules apply to the snapshots of each guest on each host; a snapshot stays if any rule keeps it.
Periods are UTC. Needs the repository to itself, as restic's forget does; space is freed by prune.
With a deletion delay (--deletion-delay, VMTWIN_DELETION_DELAY, config.toml) what is forgotten stays
until the delay is over, and is then removed by the next forget, or by vmtwin serve.")]
pub(crate) struct ForgetArgs {
    /// Snapshots to remove: ids, or the first digits of them
    #[arg(value_name = "ID", conflicts_with_all = ["vm", "keep_last", "keep_hourly", "keep_daily",
        "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tag"])]
    pub(crate) ids: Vec<String>,
    /// Remove only what was forgotten before and whose delay is over
    #[arg(long, conflicts_with_all = ["ids", "vm", "keep_last", "keep_hourly", "keep_daily",
        "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tag", "force"])]
    pub(crate) due: bool,
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

#[derive(Debug, Args)]
pub(crate) struct KeepArgs {
    /// Snapshots: ids, or the first digits of them
    #[arg(value_name = "ID", required_unless_present = "all")]
    pub(crate) ids: Vec<String>,
    /// All that wait
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
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
pub(crate) fn parse_age(text: &str) -> Result<time::Duration, String> {
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
