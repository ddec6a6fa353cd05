//! The config file: defaults of options, for a host or a user.
//!
//! A key is a long option with `_` for `-`: at the top one of every command, in `[serve]` one of
//! `vmtwin serve`. It becomes the default of that option in the command line's definition, so that
//! what is given on the command line or in the environment comes before it, and values are checked as
//! ever. `packaging/config.toml` shows every key.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Command, CommandFactory};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::cli::Cli;
use crate::home;

/// The host's, where the user has none.
const OF_HOST: &str = "/etc/vmtwin/config.toml";
/// The user's, in the home folder.
const OF_USER: &str = "config.toml";
/// Longest file, bytes.
const MAX_BYTES: u64 = 64 << 10;
/// What may stand at the top: options of every command that say where things are.
const TOP: [&str; 8] = [
    "home",
    "repo",
    "database",
    "password_file",
    "password_command",
    "deletion_delay",
    "object_lock",
    "secrets_recipient",
];
/// Commands whose options may be set too.
const COMMANDS: [&str; 1] = ["serve"];
const MODE_OF_OTHERS: u32 = 0o002;

/// The command line's definition, with the defaults of the config file.
pub(crate) fn command_line() -> Result<Command> {
    let plain = Cli::command();
    // What is wrong with the line is told when all of it is known.
    let asked = Cli::command().ignore_errors(true).try_get_matches();
    let Ok(asked) = asked else {
        return Ok(plain);
    };
    let name = asked.subcommand_name();
    // A guard must do its work, whatever somebody wrote into a file.
    if name.is_none_or(|name| plain.find_subcommand(name).is_none_or(Command::is_hide_set)) {
        return Ok(plain);
    }
    let given = |id: &str| asked.try_get_one::<PathBuf>(id).ok().flatten();
    let Some(path) = find(given("config"), given("home")) else {
        return Ok(plain);
    };
    let text = read(&path)?;
    apply(plain, &text).with_context(|| path.display().to_string())
}

/// The file that counts: the one that is named, the user's, the host's.
fn find(named: Option<&PathBuf>, home: Option<&PathBuf>) -> Option<PathBuf> {
    if let Some(path) = named {
        return Some(path.clone());
    }
    let home = home.cloned().or_else(|| home::default_dir().ok());
    let of_user = home.map(|dir| dir.join(OF_USER));
    let mut all = of_user.into_iter().chain([PathBuf::from(OF_HOST)]);
    all.find(|path| path.exists())
}

fn read(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read the config file {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let meta = file.metadata().with_context(cannot)?;
    // It may name a command.
    if meta.is_file() && meta.mode() & MODE_OF_OTHERS != 0 {
        bail!("everybody may write {0}: chmod o-w {0}", path.display());
    }
    let mut text = String::new();
    let mut limited = file.take(MAX_BYTES + 1);
    limited.read_to_string(&mut text).with_context(cannot)?;
    match text.len() as u64 > MAX_BYTES {
        true => bail!("the config file {} is longer than 64 KiB", path.display()),
        false => Ok(text),
    }
}

/// Makes what a file says the defaults of options.
fn apply(mut line: Command, text: &str) -> Result<Command> {
    // Its errors show the line, and point at what is wrong in it.
    let table = DeTable::parse(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        match value.get_ref() {
            DeValue::Table(options) if COMMANDS.contains(&name) => {
                for (key, value) in options {
                    let subject = line.find_subcommand(name);
                    let known = subject.is_some_and(|command| takes(command, key.get_ref()));
                    let (id, value) = checked(text, key, value, known)?;
                    line = line.mut_subcommand(name, |command| with_default(command, id, value));
                }
            }
            _ => {
                let known = TOP.contains(&name);
                let (id, value) = checked(text, key, value, known)?;
                line = with_default(line, id, value);
            }
        }
    }
    Ok(line)
}

/// Whether a command has an option of this id with one value.
fn takes(command: &Command, id: &str) -> bool {
    let mut options = command.get_arguments();
    options.any(|option| {
        option.get_id() == id && option.get_long().is_some() && option.get_action().takes_values()
    })
}

/// A key that is known, and its value as a command line would give it.
fn checked(
    text: &str,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    known: bool,
) -> Result<(&'static str, &'static str)> {
    let start = key.span().start.min(text.len());
    let number = text.as_bytes()[..start]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1;
    let name = key.get_ref();
    if !known {
        bail!("line {number}: there is no key '{name}'; see /usr/share/doc/vmtwin/config.toml");
    }
    let value = match value.get_ref() {
        DeValue::String(value) => value.to_string(),
        DeValue::Integer(value) => value.as_str().to_owned(),
        other => bail!(
            "line {number}: '{name}' must be a text, not of the type {}",
            other.type_str()
        ),
    };
    // The definition of the command line lives as long as the program.
    Ok((name.to_string().leak(), value.leak()))
}

fn with_default(command: Command, id: &'static str, value: &'static str) -> Command {
    command.mut_arg(id, |option| {
        option.default_value(value).hide_default_value(true)
    })
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    const SHOWN: &str = include_str!("../../../packaging/config.toml");

    fn parsed(text: &str, args: &[&str]) -> Cli {
        let line = apply(Cli::command(), text).unwrap();
        let args = [&["vmtwin"], args].concat();
        Cli::from_arg_matches(&line.try_get_matches_from(args).unwrap()).unwrap()
    }

    #[test]
    fn a_file_gives_defaults_and_the_command_line_comes_first() {
        let text = "repo = '/from/file'\npassword_file = \"/pw\"\n";
        let cli = parsed(text, &["doctor"]);
        assert_eq!(cli.global.repo.as_deref(), Some("/from/file"));
        assert_eq!(cli.global.password_file, Some(PathBuf::from("/pw")));
        let cli = parsed(text, &["doctor", "--repo", "/given"]);
        assert_eq!(cli.global.repo.as_deref(), Some("/given"));
        let cli = parsed("[serve]\nadvertise = 'h:1'\n", &["serve"]);
        assert!(format!("{:?}", cli.command).contains("h:1"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        let refused = |text: &str| apply(Cli::command(), text).unwrap_err().to_string();
        assert!(
            refused("repo = 'x'\n\nreop = 'y'\n").starts_with("line 3: there is no key 'reop'")
        );
        assert!(refused("json = true\n").contains("line 1"));
        assert!(refused("[serve]\nnothing = 'x'\n").contains("line 2"));
        assert!(refused("[serves]\n").contains("line 1"));
        assert!(refused("repo = true\n").contains("must be a text"));
        assert!(refused("repo = 'x\n").contains("line 1"));
    }

    #[test]
    fn every_key_that_is_shown_is_one() {
        let uncommented: Vec<String> = SHOWN
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .map(str::to_owned)
            .collect();
        let text = uncommented.join("\n");
        apply(Cli::command(), &text).unwrap();
        for key in TOP {
            assert!(text.contains(&format!("\n{key} = ")), "{key} is not shown");
        }
        assert!(
            parsed(SHOWN, &["doctor"]).global.repo.is_none(),
            "nothing is set"
        );
    }
}
