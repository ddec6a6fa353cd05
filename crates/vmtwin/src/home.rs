//! The home folder: where catalog, settings, password, spool and scratch lie.
//!
//! ```text
//!   HOME/catalog.db     catalog, unless it is in a database that hosts share
//!   HOME/config.json    settings: the repository, the shared database
//!   HOME/node.json      the name and id of this host in its cluster
//!   HOME/cluster/       archives of the cluster's configuration
//!   HOME/password-NAME  of the further repository of that name
//!   HOME/password       made by `init` where none was given; for this user alone
//!   HOME/run/TAG/       sockets and scratch images of one backup, gone with it
//!   HOME/serve/         certificate of the daemon that it made for itself
//!   HOME/restored/      what was restored over the API
//!   HOME/spool/         unlinked spool files
//! ```

mod named;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, PersistError};
use vmtwin_repository::{Location, Password, Repository, S3Files, Store, StoreOptions};

use crate::cancel::Cancel;
use crate::cli::Global;
use crate::cluster::Recipients;

pub(crate) use named::{MAIN, Named, check_name};

/// Longest password accepted from a file or a command, bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// The home folder and what the command line says beside it.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
    repo: Option<String>,
    database: Option<String>,
    password_file: Option<PathBuf>,
    password_command: Option<String>,
    deletion_delay: Option<time::Duration>,
    object_lock: Option<time::Duration>,
    secrets_recipient: Option<Recipients>,
    as_of: Option<time::OffsetDateTime>,
    cancel: Cancel,
}

/// `config.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Location of the repository.
    repository: Option<String>,
    /// URL of the PostgreSQL database that holds the catalog; none: the file in this folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    /// Further repositories, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    repositories: BTreeMap<String, Named>,
}

impl Home {
    /// Finds the home folder and makes it where it is missing.
    pub(crate) fn open(global: &Global, cancel: &Cancel) -> Result<Home> {
        let dir = match &global.home {
            Some(dir) => std::path::absolute(dir)?,
            None => default_dir()?,
        };
        private_dir(&dir)?;
        Ok(Home {
            dir,
            repo: global.repo.clone(),
            database: global.database.clone(),
            password_file: global.password_file.clone(),
            password_command: global.password_command.clone(),
            deletion_delay: global.deletion_delay,
            object_lock: global.object_lock,
            secrets_recipient: global.secrets_recipient.clone(),
            as_of: global.as_of,
            cancel: cancel.clone(),
        })
    }

    /// Has a command of this program use the same home, repository and catalog.
    pub(crate) fn pass_on(&self, command: &mut std::process::Command) {
        command.env("VMTWIN_HOME", &self.dir);
        let mut pass = |key: &str, value: Option<&std::ffi::OsStr>| {
            if let Some(value) = value {
                command.env(key, value);
            }
        };
        pass("VMTWIN_REPO", self.repo.as_deref().map(AsRef::as_ref));
        pass(
            "VMTWIN_DATABASE",
            self.database.as_deref().map(AsRef::as_ref),
        );
        let file = self.password_file.as_deref();
        pass("VMTWIN_PASSWORD_FILE", file.map(AsRef::as_ref));
        let by = self.password_command.as_deref();
        pass("VMTWIN_PASSWORD_COMMAND", by.map(AsRef::as_ref));
        let recipients = self.secrets_recipient.as_ref().map(ToString::to_string);
        pass(
            "VMTWIN_SECRETS_RECIPIENT",
            recipients.as_deref().map(AsRef::as_ref),
        );
        for (key, time) in [
            ("VMTWIN_DELETION_DELAY", self.deletion_delay),
            ("VMTWIN_OBJECT_LOCK", self.object_lock),
        ] {
            let hours = time.map(|time| format!("{}h", time.whole_hours()));
            pass(key, hours.as_deref().map(AsRef::as_ref));
        }
    }

    /// How long what is written to S3 is locked; none: not at all.
    pub(crate) fn object_lock(&self) -> Option<time::Duration> {
        self.object_lock.filter(|time| time.is_positive())
    }

    /// Whom secrets in backups of the cluster are sealed for.
    pub(crate) fn secrets_recipients(&self) -> Option<&Recipients> {
        self.secrets_recipient.as_ref()
    }

    /// How long forgotten snapshots stay; none: they go at once.
    pub(crate) fn deletion_delay(&self) -> Option<time::Duration> {
        self.deletion_delay.filter(|delay| delay.is_positive())
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the user asked to stop.
    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.dir.join("catalog.db")
    }

    /// Folder of copies of indexes, one folder per repository. It may be removed at any time.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Folder that holds one folder per running backup.
    pub(crate) fn run_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("run");
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Folder that holds one folder per standby twin.
    pub(crate) fn standby_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("standby");
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Folder of pictures of screens.
    pub(crate) fn pictures_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("pictures");
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Folder of archives of the cluster's configuration.
    pub(crate) fn cluster_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("cluster");
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Folder of the daemon's own certificate.
    pub(crate) fn serve_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("serve");
        private_dir(&dir)?;
        Ok(dir)
    }

    pub(crate) fn spool_dir(&self) -> Result<PathBuf> {
        let dir = self.dir.join("spool");
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Where the repository is: the command line (a location, or the name of a further one), the
    /// settings, or a folder in the home folder.
    pub(crate) fn location(&self) -> Result<Location> {
        if let Some(named) = self.chosen()? {
            return Ok(Location::parse(&named.location)?);
        }
        let text = match &self.repo {
            Some(text) => text.clone(),
            None => match self.config()?.repository {
                Some(text) => text,
                None => self.dir.join("repository").display().to_string(),
            },
        };
        Ok(Location::parse(&text)?)
    }

    /// Opens the repository.
    pub(crate) fn repository(&self) -> Result<Repository> {
        let location = self.location()?;
        let Some(password) = self.password()? else {
            bail!(
                "no password for the repository {location}: set VMTWIN_PASSWORD, or give \
                 --password-file or --password-command, or run: vmtwin init"
            );
        };
        self.store(&location)
            .and_then(|store| Ok(Repository::open_with(store, &password)?))
            .map(|repository| match self.as_of {
                // What was there then is not what is kept of now.
                Some(_) => repository,
                None => repository.with_cache(&self.cache_dir()),
            })
            .with_context(|| format!("cannot open the repository {location}"))
    }

    /// The store of a location; Ctrl-C ends its waits.
    pub(crate) fn store(&self, location: &Location) -> Result<Arc<dyn Store>> {
        Ok(location.store(&self.store_options())?)
    }

    /// Plain files in a bucket of S3.
    pub(crate) fn s3_files(&self, place: &str) -> Result<S3Files> {
        let opened = S3Files::open(place, &self.store_options());
        opened.context("cannot open that place in S3")
    }

    fn store_options(&self) -> StoreOptions {
        StoreOptions {
            cancel: Some(self.cancel.flag()),
            retain: self.object_lock().map(time::Duration::unsigned_abs),
            as_of: self.as_of,
            ..StoreOptions::default()
        }
    }

    /// The password, from wherever it is given.
    pub(crate) fn password(&self) -> Result<Option<Password>> {
        if let Some(named) = self.chosen()?
            && let Some(password) = named.password()?
        {
            return Ok(Some(password));
        }
        if let Some(file) = &self.password_file {
            return read_password(file).map(Some);
        }
        if let Some(command) = &self.password_command {
            return password_of_command(command).map(Some);
        }
        if let Ok(text) = std::env::var("VMTWIN_PASSWORD") {
            return Ok(Some(Password::new(text)));
        }
        let kept = self.password_path();
        if kept.exists() {
            read_password(&kept).map(Some)
        } else {
            Ok(None)
        }
    }

    fn password_path(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// Keeps a password that was made here, readable by this user alone.
    pub(crate) fn keep_password(&self, text: &str) -> Result<PathBuf> {
        let path = self.password_path();
        write_private(&path, format!("{text}\n").as_bytes())?;
        Ok(path)
    }

    /// Remembers where the repository is.
    pub(crate) fn keep_location(&self, location: &Location) -> Result<()> {
        self.keep(Config {
            repository: Some(location.to_string()),
            ..self.config()?
        })
    }

    /// The URL of the database that holds the catalog, if it is not the file in this folder.
    pub(crate) fn database(&self) -> Result<Option<String>> {
        match &self.database {
            Some(url) => Ok(Some(url.clone())),
            None => Ok(self.config()?.database),
        }
    }

    /// The URL of the database in the settings, whatever the command line says.
    pub(crate) fn kept_database(&self) -> Result<Option<String>> {
        Ok(self.config()?.database)
    }

    /// The same home without what the command line says of a database.
    pub(crate) fn without_database(&self) -> Home {
        Home {
            database: None,
            ..self.clone()
        }
    }

    /// Remembers the database that holds the catalog; `None` goes back to the file.
    pub(crate) fn keep_database(&self, url: Option<&str>) -> Result<()> {
        self.keep(Config {
            database: url.map(str::to_owned),
            ..self.config()?
        })
    }

    /// Whether a text is one of settings.
    pub(crate) fn is_settings(text: &str) -> bool {
        serde_json::from_str::<Config>(text).is_ok()
    }

    fn keep(&self, config: Config) -> Result<()> {
        write_private(
            &self.config_path(),
            serde_json::to_string_pretty(&config)?.as_bytes(),
        )
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn config(&self) -> Result<Config> {
        let path = self.config_path();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is not a valid settings file", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// The home folder of a user who names none.
pub(crate) fn default_dir() -> Result<PathBuf> {
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(data).join("vmtwin"));
    }
    let Some(user) = std::env::var_os("HOME") else {
        bail!("no home folder: set VMTWIN_HOME or give --home");
    };
    let own = PathBuf::from(user).join(".local/share/vmtwin");
    // Root's own folder is closed to QEMU's user, which must get to a twin's disks.
    match rustix::process::geteuid().is_root() && !own.exists() {
        true => Ok(PathBuf::from("/var/lib/vmtwin")),
        false => Ok(own),
    }
}

/// Makes a folder for this user (others may pass through, QEMU's user must reach its sockets).
fn private_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))
}

/// Writes a file for this user alone, over one that is there: under its name there is all of the old one
/// or all of the new one, of one writer, whoever else writes it at the same time.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    publish_private(path, bytes, |file| file.persist(path))
}

/// Writes a file that is not there, for this user alone: under its name there is all of it or nothing.
pub(crate) fn write_new_private(path: &Path, bytes: &[u8]) -> Result<()> {
    publish_private(path, bytes, |file| file.persist_noclobber(path))
}

/// Writes a file of a name of its own beside `path`, which goes away with any error, and has `persist` give
/// it its name.
fn publish_private(
    path: &Path,
    bytes: &[u8],
    persist: impl FnOnce(NamedTempFile) -> Result<File, PersistError>,
) -> Result<()> {
    let write = || -> std::io::Result<()> {
        // For this user alone (0600), as all that this library makes.
        let mut file = NamedTempFile::new_in(folder_of(path))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        persist(file)?;
        sync_folder(path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the name of a file outlive a power cut.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

/// The first line of a file.
pub(crate) fn read_password(path: &Path) -> Result<Password> {
    let context = || format!("cannot read the password file {}", path.display());
    let size = std::fs::metadata(path).with_context(context)?.len();
    if size > MAX_PASSWORD_BYTES {
        bail!("the password file {} is longer than 4 KiB", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(context)?;
    first_line(&text).with_context(|| format!("the password file {} is empty", path.display()))
}

/// The first line that a command prints.
pub(crate) fn password_of_command(command: &str) -> Result<Password> {
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot run the password command")?;
    if !output.status.success() {
        bail!("the password command failed ({})", output.status);
    }
    let text = String::from_utf8(output.stdout).context("the password is not UTF-8")?;
    first_line(&text).context("the password command printed nothing")
}

fn first_line(text: &str) -> Option<Password> {
    let line = text.lines().next()?;
    (!line.is_empty()).then(|| Password::new(line.to_owned()))
}

/// A password of 160 random bits.
pub(crate) fn make_password() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).context("no random numbers from the system")?;
    let letters: Vec<u8> = bytes
        .iter()
        .map(|b| ALPHABET[usize::from(b % 32)])
        .collect();
    let groups: Vec<String> = letters
        .chunks(8)
        .map(|c| String::from_utf8_lossy(c).into_owned())
        .collect();
    Ok(groups.join("-"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_file_is_one_writers_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let texts = [vec![b'a'; 300_000], vec![b'b'; 3]];
        std::thread::scope(|scope| {
            for text in &texts {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| write_private(path, text).unwrap()));
            }
        });
        assert!(texts.contains(&std::fs::read(&path).unwrap()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // What cannot be put there leaves nothing beside it.
        write_new_private(&path, b"c").unwrap_err();
        let taken = folder.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        write_private(&taken, b"c").unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
