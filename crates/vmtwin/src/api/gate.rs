//! Which command needs which scope, and what of it nobody may ask for from afar.
//!
//! Paths are of this host. A token that is not an administrator's restores below one folder: relative
//! paths are taken from there, and others, like commands that this host is to run, are refused.

use std::path::{Component, Path, PathBuf};

use axum::http::StatusCode;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use vmtwin_catalog::Scope;
use vmtwin_server::Problem;

use crate::cli::{
    CatalogCommand, Cli, ClusterCommand, Command, ScheduleCommand, SnapshotCommand, TwinCommand,
    VmCommand, repo::RepoCommand,
};

/// Options of every command that a request may have.
const OPEN_OPTIONS: &[&str] = &["json", "quiet", "repo"];
/// Options by which this host runs a command, or lets others in.
const REACHING_OUT: &[&str] = &["fence", "with_password_command", "command", "allow_remote"];

/// A command line that was looked at.
#[derive(Debug)]
pub(super) struct Checked {
    /// The words of the command.
    pub(super) words: String,
    pub(super) needs: Scope,
    /// It only looks, and is done at once.
    pub(super) is_look: bool,
    /// The guest it is about.
    pub(super) vm: Option<String>,
}

/// What there is around a command.
pub(super) struct Bounds<'a> {
    /// Folders that paths may lead into, the folder of restores first.
    pub(super) folders: &'a [&'a Path],
    /// Snapshots are removed after a delay only: nobody from afar gets around that.
    pub(super) is_delayed: bool,
}

/// Looks at a command line.
pub(super) fn check(arguments: &[String], bounds: &Bounds<'_>) -> Result<Checked, Problem> {
    let line = std::iter::once("vmtwin".to_owned()).chain(arguments.iter().cloned());
    let matches = Cli::command().try_get_matches_from(line).map_err(wrong)?;
    let cli = Cli::from_arg_matches(&matches).map_err(wrong)?;
    let (words, leaf) = words(&matches);
    if super::commands::find(&words).is_none() {
        return Err(refused(&format!(
            "{words} cannot be asked for; run it on the host"
        )));
    }
    let command = Cli::command();
    let closed = command.get_arguments().filter(|arg| {
        let id = arg.get_id().as_str();
        arg.is_global_set() && !OPEN_OPTIONS.contains(&id)
    });
    for option in closed {
        if leaf.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine) {
            return Err(refused(&format!(
                "--{} is the host's own affair; only {} may be given",
                option.get_long().unwrap_or_default(),
                OPEN_OPTIONS.join(", ")
            )));
        }
    }
    let reaches_out = given(leaf).any(|id| REACHING_OUT.contains(&id))
        || strange_paths(leaf, bounds.folders)
        || given(leaf).any(|id| id == "repo")
            && cli.global.repo.as_deref().is_some_and(is_location);
    // A guest's socket is only spoken to.
    let is_new_guest = matches!(cli.command, Command::Vm(VmCommand::Add { .. }));
    if bounds.is_delayed && (reaches_out && !is_new_guest || gets_around(&cli.command)) {
        return Err(refused(
            "this host removes snapshots after a delay only, and while it does, what could get around \
             that is not for the API: run it on the host",
        ));
    }
    let needs = match reaches_out {
        true => Scope::Admin,
        false => scope(&cli.command),
    };
    Ok(Checked {
        vm: vm(&cli.command),
        is_look: is_look(&cli.command),
        words,
        needs,
    })
}

fn wrong(error: clap::Error) -> Problem {
    let text = error.render().to_string();
    let text = text.trim().trim_start_matches("error: ");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text)
}

fn refused(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, detail)
}

/// The words of the command, and what was given to it.
fn words(matches: &ArgMatches) -> (String, &ArgMatches) {
    let (mut words, mut leaf) = (Vec::new(), matches);
    while let Some((word, below)) = leaf.subcommand() {
        words.push(word);
        leaf = below;
    }
    (words.join(" "), leaf)
}

fn given(leaf: &ArgMatches) -> impl Iterator<Item = &str> {
    let ids = leaf.ids().map(clap::Id::as_str);
    ids.filter(|id| leaf.value_source(id) == Some(ValueSource::CommandLine))
}

/// Whether a repository is given as a place, and not by its name here.
fn is_location(repo: &str) -> bool {
    repo.contains(['/', ':', '.'])
}

/// Whether a path is given that leads elsewhere.
fn strange_paths(leaf: &ArgMatches, folders: &[&Path]) -> bool {
    given(leaf).any(|id| {
        let Ok(Some(values)) = leaf.try_get_many::<PathBuf>(id) else {
            return PATHS_AS_TEXT.contains(&id);
        };
        values.into_iter().any(|path| !is_in(folders, path))
    })
}

/// Options that hold paths as texts.
const PATHS_AS_TEXT: &[&str] = &["output"];

fn is_in(folders: &[&Path], path: &Path) -> bool {
    // This host's keys would lead there.
    if crate::cluster::bucket::place(path).is_some() {
        return false;
    }
    match path.is_absolute() {
        false => folders.first().is_some_and(|root| is_below(root, path)),
        true => folders.iter().any(|folder| {
            path.strip_prefix(folder)
                .is_ok_and(|rest| is_below(folder, rest))
        }),
    }
}

/// Whether a path leads below `root`, by no link: what is there may have come out of a guest.
fn is_below(root: &Path, path: &Path) -> bool {
    let mut at = root.to_owned();
    path.components().all(|part| match part {
        Component::Normal(name) => {
            at.push(name);
            !at.symlink_metadata().is_ok_and(|it| it.is_symlink())
        }
        Component::CurDir => true,
        _ => false,
    })
}

/// Whether a command could replace the catalog, which holds when snapshots may be removed.
fn gets_around(command: &Command) -> bool {
    match command {
        Command::Catalog(_) => !is_look(command),
        Command::Cluster(command) => matches!(
            command,
            ClusterCommand::Create { .. } | ClusterCommand::Join(_) | ClusterCommand::Restore(_)
        ),
        _ => false,
    }
}

fn is_look(command: &Command) -> bool {
    match command {
        Command::Vm(VmCommand::List | VmCommand::Show { .. })
        | Command::Snapshot(
            SnapshotCommand::List { .. }
            | SnapshotCommand::Show { .. }
            | SnapshotCommand::Ls(_)
            | SnapshotCommand::Forgotten,
        )
        | Command::Stats { .. }
        | Command::Schedule(ScheduleCommand::List | ScheduleCommand::Show { .. })
        | Command::Repo(RepoCommand::List)
        | Command::Twin(TwinCommand::List)
        | Command::Catalog(CatalogCommand::Show | CatalogCommand::Check)
        | Command::Doctor => true,
        Command::Cluster(command) => matches!(
            command,
            ClusterCommand::Nodes
                | ClusterCommand::List { .. }
                | ClusterCommand::View { .. }
                | ClusterCommand::Validate { .. }
        ),
        _ => false,
    }
}

/// The least that lets somebody ask for a command.
fn scope(command: &Command) -> Scope {
    if is_look(command) {
        return Scope::View;
    }
    match command {
        Command::Backup(_)
        | Command::Settle(_)
        | Command::Check(_)
        | Command::Copy(_)
        | Command::Recover
        | Command::Snapshot(SnapshotCommand::Verify(_) | SnapshotCommand::Keep(_))
        | Command::Schedule(ScheduleCommand::Run { .. })
        | Command::Cluster(ClusterCommand::Backup(_) | ClusterCommand::Collect { .. }) => {
            Scope::Backup
        }
        Command::Restore(_)
        | Command::Export(_)
        | Command::Snapshot(SnapshotCommand::Get(_))
        | Command::Twin(_) => Scope::Restore,
        _ => Scope::Admin,
    }
}

/// The one guest that a command is about.
fn vm(command: &Command) -> Option<String> {
    match command {
        Command::Backup(args) => match args.vms.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        },
        Command::Twin(TwinCommand::Start(args)) => Some(args.vm.clone()),
        Command::Vm(VmCommand::Set { name, .. }) => Some(name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn needs(line: &str) -> Result<Scope, u16> {
        checked(line, false)
    }

    fn checked(line: &str, is_delayed: bool) -> Result<Scope, u16> {
        let folders = [Path::new("/home/restored"), Path::new("/home/cluster")];
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let bounds = Bounds {
            folders: &folders,
            is_delayed,
        };
        let checked = check(&arguments, &bounds).map_err(|problem| problem.status)?;
        Ok(checked.needs)
    }

    #[test]
    fn a_command_needs_its_scope() {
        for (line, scope) in [
            ("vm list", Scope::View),
            ("snapshot show latest", Scope::View),
            ("backup web01 --json", Scope::Backup),
            ("backup web01 --repo offsite", Scope::Backup),
            ("snapshot verify latest", Scope::Backup),
            ("restore latest --to web01", Scope::Restore),
            ("snapshot get latest:vda/etc/hosts --to x", Scope::Restore),
            ("twin promote web01-twin", Scope::Restore),
            ("cluster view /home/cluster/lab.zip", Scope::View),
            // Away from the folder of restores, or with commands of the host's.
            ("restore latest --to /etc", Scope::Admin),
            ("restore latest --to ../x", Scope::Admin),
            ("backup web01 --scratch /tmp", Scope::Admin),
            ("backup web01 --repo /mnt/x", Scope::Admin),
            ("twin start web01 --standby --fence reboot", Scope::Admin),
            ("cluster view /etc/shadow", Scope::Admin),
            ("cluster view /home/cluster/../x", Scope::Admin),
            ("cluster view s3://bucket/x.zip", Scope::Admin),
            ("cluster backup --output s3://bucket/x", Scope::Admin),
            ("cluster backup --with-secrets", Scope::Backup),
            (
                "cluster backup --with-secrets --secrets-passphrase-file /etc/hostname",
                Scope::Admin,
            ),
            (
                "cluster validate /home/cluster/lab.zip --secrets-identity /root/key",
                Scope::Admin,
            ),
            (
                "export latest --listen 0.0.0.0:1 --allow-remote",
                Scope::Admin,
            ),
            ("snapshot forget latest", Scope::Admin),
            ("prune", Scope::Admin),
            ("vm remove web01", Scope::Admin),
            ("schedule remove nightly", Scope::Admin),
            ("init", Scope::Admin),
        ] {
            assert_eq!(needs(line), Ok(scope), "{line}");
        }
    }

    #[test]
    fn what_is_the_hosts_own_is_refused() {
        for line in [
            "serve",
            "completions bash",
            "pause-guard",
            "schedule follow",
            "backup web01 --home /tmp",
            "backup web01 --password-command sh",
            "backup web01 --password-file /etc/shadow",
            "backup web01 --worker",
            "cluster secrets-key /home/cluster/x",
            "backup web01 --server http://elsewhere",
            "vm list --database postgres://x/y",
        ] {
            assert_eq!(needs(line).unwrap_err(), 403, "{line}");
        }
        for line in [
            "",
            "no-such-command",
            "backup",
            "backup --nonsense x",
            "--help",
        ] {
            assert_eq!(needs(line).unwrap_err(), 422, "{line}");
        }
    }

    #[test]
    fn nobody_gets_around_a_deletion_delay() {
        for line in [
            "snapshot forget latest --deletion-delay 0h",
            "catalog load x.jsonl --force",
            "cluster restore x.zip --only-database --force",
            "cluster join vmtwin-join-1.x",
            "notify add x --command rm",
            "restore latest --to /etc",
            "prune --repo /mnt/x",
        ] {
            assert_eq!(checked(line, true), Err(403), "{line}");
        }
        for (line, scope) in [
            ("snapshot forget latest --prune", Scope::Admin),
            ("snapshot keep latest", Scope::Backup),
            ("vm add web01 --qmp /run/web01.qmp", Scope::Admin),
            ("snapshot forgotten", Scope::View),
            ("catalog show", Scope::View),
            ("restore latest --to web01", Scope::Restore),
        ] {
            assert_eq!(checked(line, true), Ok(scope), "{line}");
        }
    }

    #[test]
    fn no_link_leads_out_of_the_folder_of_restores() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        assert!(is_below(dir.path(), Path::new("a/./b")));
        assert!(!is_below(dir.path(), Path::new("link/x")));
        assert!(!is_below(dir.path(), Path::new("a/../../x")));
    }
}
