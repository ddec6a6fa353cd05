//! Further repositories, by name: where they are, and where their passwords come from.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vmtwin_repository::{Location, Password, Repository};

use super::{Home, password_of_command, read_password, write_private};

/// What messages call the repository that has no name of its own.
pub(crate) const MAIN: &str = "main";

/// A further repository, as the settings keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    /// Where it is.
    pub(crate) location: String,
    /// Its id.
    pub(crate) id: String,
    /// File whose first line is its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<PathBuf>,
    /// Command that prints its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password_command: Option<String>,
}

impl Named {
    /// Its password, if it has one of its own.
    pub(super) fn password(&self) -> Result<Option<Password>> {
        match (&self.password_file, &self.password_command) {
            (Some(file), _) => read_password(file).map(Some),
            (None, Some(command)) => password_of_command(command).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl Home {
    /// All further repositories, by name.
    pub(crate) fn named(&self) -> Result<Vec<(String, Named)>> {
        Ok(self.config()?.repositories.into_iter().collect())
    }

    /// The further repository of a name.
    pub(crate) fn named_one(&self, name: &str) -> Result<Named> {
        let mut all = self.config()?.repositories;
        all.remove(name).with_context(|| {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            match known.as_slice() {
                [] => {
                    format!("no repository is called '{name}'; add it: vmtwin repo add {name} URL")
                }
                known => format!(
                    "no repository is called '{name}'; there are {}",
                    known.join(", ")
                ),
            }
        })
    }

    /// The further repository that `--repo` names, if it does.
    pub(super) fn chosen(&self) -> Result<Option<Named>> {
        match &self.repo {
            Some(name) => Ok(self.config()?.repositories.remove(name)),
            None => Ok(None),
        }
    }

    /// The same home with that further repository as its repository.
    pub(crate) fn at(&self, name: &str) -> Home {
        Home {
            repo: Some(name.to_owned()),
            ..self.clone()
        }
    }

    /// Opens a further repository; it must be the one that was added.
    pub(crate) fn open_named(&self, name: &str) -> Result<Repository> {
        let named = self.named_one(name)?;
        let repository = self.at(name).repository()?;
        if repository.id() != named.id {
            bail!(
                "the repository at {} is not the one that was added as '{name}'; if that is meant: \
                 vmtwin repo remove {name}, and add it again",
                named.location
            );
        }
        Ok(repository)
    }

    /// Remembers a further repository.
    pub(crate) fn keep_named(&self, name: &str, named: Named) -> Result<()> {
        check_name(name)?;
        let mut config = self.config()?;
        if let Some(other) = config.repositories.get(name)
            && other.id != named.id
        {
            let place = &other.location;
            bail!("'{name}' is {place} already; remove it first: vmtwin repo remove {name}");
        }
        config.repositories.insert(name.to_owned(), named);
        self.keep(config)
    }

    /// Forgets a further repository, and the password that was made for it.
    pub(crate) fn forget_named(&self, name: &str) -> Result<Named> {
        let named = self.named_one(name)?;
        let mut config = self.config()?;
        config.repositories.remove(name);
        self.keep(config)?;
        Ok(named)
    }

    /// Where a password that is made for a further repository is kept.
    pub(crate) fn named_password_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("password-{name}"))
    }

    /// Keeps a password that was made here, readable by this user alone.
    pub(crate) fn keep_named_password(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.named_password_path(name);
        write_private(&path, format!("{text}\n").as_bytes())?;
        Ok(path)
    }

    /// The store of a further repository that is not in the settings yet.
    pub(crate) fn parse_location(&self, text: &str) -> Result<Location> {
        let location = Location::parse(text)?;
        if self.location().is_ok_and(|main| main == location) {
            bail!("{location} is the main repository");
        }
        Ok(location)
    }
}

/// Letters, digits, `-` and `_`: it is part of a file's name, and must not look like a location.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match name.is_empty() || name.len() > 64 || name == MAIN || !name.chars().all(plain) {
        true => {
            bail!("'{name}' is no name for a repository: letters, digits, - and _, and not 'main'")
        }
        false => Ok(()),
    }
}
