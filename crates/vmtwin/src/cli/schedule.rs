//! Arguments of `schedule`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vmtwin_calendar::Calendar;

use super::{Consistency, Fallback, Order};

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleCommand {
    /// Have guests backed up by themselves
    #[command(after_help = ADD_HELP)]
    Add(Box<ScheduleAddArgs>),
    /// List schedules: when each is due next, and how it went last
    List,
    /// Show a schedule: its next due times and its latest runs
    Show {
        /// Schedule
        name: String,
    },
    /// Remove a schedule; snapshots stay
    Remove {
        /// Schedule
        name: String,
    },
    /// Follow a schedule again
    Enable {
        /// Schedule
        name: String,
    },
    /// Follow a schedule no more, until `enable`
    Disable {
        /// Schedule
        name: String,
    },
    /// Do now what a schedule does when it is due
    Run {
        /// Schedule
        name: String,
    },
    /// Start what is due, until Ctrl-C
    #[command(
        after_help = "Example:\n  vmtwin schedule follow\n\nRuns in the foreground. `vmtwin serve`, \
        the service, does the same. Several at once do no harm: what is due is begun once."
    )]
    Follow,
}

const ADD_HELP: &str = "Examples:
  vmtwin schedule add nightly --on 'Mon..Fri 02:30' --all --keep-daily 7 --keep-weekly 4 --prune
  vmtwin schedule add hourly --every 1h --vm db01 --vm web01 --consistency crash --keep-last 24
  vmtwin schedule add prod --on '*:00' --group prod --keep-hourly 48 --keep-daily 30
  vmtwin schedule add nodes --every 1d --cluster --output /backup/cluster --keep-last 14
  vmtwin schedule add changes --on-change --cluster --output s3://backups/cluster --keep-last 30
  vmtwin schedule add weekly --on 'Sun 04:00 Europe/Berlin' --all --order random --jitter 20m --window 4h

--on takes systemd's calendar expressions (man systemd.time). A schedule is followed by `vmtwin serve`, on
the host it was made on; in a cluster on every node, which backs up the guests that are on it at that
time, --parallel of them at once on each node, and one node applies the --keep rules once after all.
--this-host makes one of this node alone. With --cluster any node may make the backup: give --output with a
place that all of them reach, or --this-host. What was due while nothing followed is done once, as soon as
something does, unless --no-catch-up; what could not begin within --window is noted as missed.";

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("when").required(true).args(["on", "every", "on_change"])))]
#[command(group(clap::ArgGroup::new("which").required(true).args(["vms", "groups", "all", "cluster"])))]
pub(crate) struct ScheduleAddArgs {
    /// Name of the schedule
    pub(crate) name: String,
    /// When: a calendar expression
    #[arg(long, value_name = "CALENDAR")]
    pub(crate) on: Option<Calendar>,
    /// When: each time this long after the last, from now: 30m, 6h, 1d
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) every: Option<u64>,
    /// When: the configuration of a node has changed, and all have stood still since for --settle
    #[arg(long, requires = "cluster")]
    pub(crate) on_change: bool,
    /// How long the configuration must have stood still: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time,
        requires = "on_change")]
    pub(crate) settle: u64,
    /// Guest (may be given more than once)
    #[arg(long = "vm", value_name = "VM")]
    pub(crate) vms: Vec<String>,
    /// All guests of a group, also those that come into it later: `vm set NAME --group GROUP` (may be
    /// given more than once)
    #[arg(long = "group", value_name = "GROUP", value_parser = crate::twin_args::group)]
    pub(crate) groups: Vec<String>,
    /// All guests of the table, also those that come later
    #[arg(long)]
    pub(crate) all: bool,
    /// The configuration of the cluster (as `cluster backup` does), and no guests
    #[arg(long, conflicts_with_all = ["consistency", "or", "tags", "order", "parallel",
        "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "prune"])]
    pub(crate) cluster: bool,
    /// Folder for backups of the cluster, or s3://BUCKET/PREFIX [default: the home folder's]
    #[arg(long, value_name = "DIR", requires = "cluster")]
    pub(crate) output: Option<PathBuf>,
    /// With the cluster's secrets, sealed for the secrets_recipient in the config file of the host that
    /// makes the backup
    #[arg(long, requires = "cluster")]
    pub(crate) with_secrets: bool,
    /// In a cluster: follow it on this host alone, for guests that are on it
    #[arg(long)]
    pub(crate) this_host: bool,
    /// Promise that each backup keeps, or fails
    #[arg(long, value_enum, default_value = "application")]
    pub(crate) consistency: Consistency,
    /// What it may fall back to when the promise cannot be kept
    #[arg(long = "or", value_enum)]
    pub(crate) or: Option<Fallback>,
    /// Label of the snapshots (may be given more than once)
    #[arg(long = "tag", value_name = "TAG", value_parser = super::backup::parse_tag)]
    pub(crate) tags: Vec<String>,
    /// Order of the guests
    #[arg(long, value_enum, default_value = "fixed")]
    pub(crate) order: Order,
    /// Begin up to this much later, another time each time: 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) jitter: Option<u64>,
    /// Guests that are backed up at once, on each node
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) parallel: u32,
    /// Begin no guest later than this after the due time: 4h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) window: Option<u64>,
    /// Leave out what was due while nothing followed the schedule
    #[arg(long)]
    pub(crate) no_catch_up: bool,
    /// After it, keep the newest N snapshots of each of its guests, or N of its backups of the cluster
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
    /// Then prune
    #[arg(long)]
    pub(crate) prune: bool,
}

/// `90s`, `30m`, `6h`, `1d`; in seconds, up to a year.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time such as 90s, 30m, 6h or 1d");
    let unit = match text.chars().next_back() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let seconds = count
        .checked_mul(unit)
        .filter(|s| (1..=366 * 86_400).contains(s));
    seconds.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_time;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(parse_time("90s"), Ok(90));
        assert_eq!(parse_time("6h"), Ok(21_600));
        for text in [
            "",
            "h",
            "0s",
            "10",
            "400d",
            "1.5h",
            "-1h",
            "99999999999999999999s",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
