//! `vmtwin repo …`: further repositories, which backups go to as well.

use anyhow::{Result, bail};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_repository::Password;

use super::init::make_or_open;
use crate::cancel::Cancel;
use crate::cli::repo::{RepoAddArgs, RepoCommand};
use crate::db::Db;
use crate::home::{Home, MAIN, Named, make_password, password_of_command, read_password};
use crate::ui::{BarProgress, Ui, table};

/// A repository in the settings.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    location: String,
    /// Its id; of the main one only where it was opened.
    id: Option<String>,
}

/// What `add` did.
#[derive(Debug, Serialize)]
struct Added {
    #[serde(flatten)]
    row: Row,
    /// Whether it was made now.
    created: bool,
    /// The password, where it was made now: shown this once.
    password: Option<String>,
    password_file: Option<String>,
}

/// Setting that holds when the object locks of the repository there were renewed last, RFC 3339.
pub(crate) fn renewed_key(location: &str) -> String {
    format!("object-lock.renewed.{location}")
}

fn renew(home: &Home, ui: &Ui, cancel: &Cancel) -> Result<()> {
    if home.object_lock().is_none() {
        bail!(
            "nothing says how long the locks are: give --object-lock, VMTWIN_OBJECT_LOCK or \
             object_lock in the config file, such as 30d"
        );
    }
    let repository = home.repository()?;
    let progress = BarProgress {
        bar: ui.spinner("locking"),
        cancel,
    };
    let renewed = repository.renew_object_locks(&progress);
    progress.bar.finish_and_clear();
    let renewed = renewed?;
    let now = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let key = renewed_key(&home.location()?.to_string());
    Db::open(home)?.run(async |c| c.set_setting(&key, &now).await)?;
    ui.result(&serde_json::json!({ "locked": renewed }), || {
        format!("{renewed} objects are locked anew")
    })
}

pub(crate) fn run(home: &Home, ui: &Ui, cancel: &Cancel, command: &RepoCommand) -> Result<()> {
    match command {
        RepoCommand::Add(args) => add(home, ui, args),
        RepoCommand::List => list(home, ui),
        RepoCommand::Renew => renew(home, ui, cancel),
        RepoCommand::Remove { name } => {
            let named = home.forget_named(name)?;
            ui.result(&serde_json::json!({ "removed": name }), || {
                format!("{name} is forgotten; {} stays as it is", named.location)
            })
        }
    }
}

fn list(home: &Home, ui: &Ui) -> Result<()> {
    let mut rows = vec![Row {
        name: MAIN.into(),
        location: home.location()?.to_string(),
        id: None,
    }];
    rows.extend(home.named()?.into_iter().map(|(name, named)| Row {
        name,
        location: named.location,
        id: Some(named.id),
    }));
    ui.result(&rows, || {
        let cell = |row: &Row| {
            let id = row.id.as_deref().and_then(|id| id.get(..8)).unwrap_or("-");
            vec![row.name.clone(), row.location.clone(), id.to_owned()]
        };
        let cells: Vec<Vec<String>> = rows.iter().map(cell).collect();
        table(&["NAME", "LOCATION", "ID"], &cells)
    })
}

/// May be repeated: a repository that is there and opens is kept.
fn add(home: &Home, ui: &Ui, args: &RepoAddArgs) -> Result<()> {
    let location = home.parse_location(&args.location)?;
    let file = args.with_password_file.as_ref().map(std::path::absolute);
    let mut named = Named {
        location: location.to_string(),
        id: String::new(),
        password_file: file.transpose()?,
        password_command: args.with_password_command.clone(),
    };
    let (password, made) = password(home, &args.name, &mut named)?;
    let hint = "cannot be opened with that password; give its own with --with-password-file";
    let (repository, created) = make_or_open(home, &location, &password, hint)?;
    named.id = repository.id();
    // The password before what needs it.
    let made = made.filter(|_| created);
    if let Some(text) = &made {
        home.keep_named_password(&args.name, text)?;
    }
    home.keep_named(&args.name, named.clone())?;
    let added = Added {
        row: Row {
            name: args.name.clone(),
            location: named.location,
            id: Some(named.id),
        },
        created,
        password_file: (made.as_ref()).and(named.password_file.map(|p| p.display().to_string())),
        password: made,
    };
    ui.result(&added, || text(&added))
}

/// The password of a repository that is being added, and its text if it is made now.
fn password(home: &Home, name: &str, named: &mut Named) -> Result<(Password, Option<String>)> {
    if let Some(file) = &named.password_file {
        return Ok((read_password(file)?, None));
    }
    if let Some(command) = &named.password_command {
        return Ok((password_of_command(command)?, None));
    }
    let kept = home.named_password_path(name);
    named.password_file = Some(kept.clone());
    if kept.exists() {
        return Ok((read_password(&kept)?, None));
    }
    let text = make_password()?;
    Ok((Password::random(text.clone()), Some(text)))
}

fn text(added: &Added) -> String {
    let verb = if added.created { "made" } else { "found" };
    let name = &added.row.name;
    let mut lines = vec![format!(
        "repository {verb}: {name} at {}",
        added.row.location
    )];
    if let (Some(password), Some(file)) = (&added.password, &added.password_file) {
        lines.push(format!(
            "password: {password}\n  Shown this once and kept in {file}. Write it down elsewhere: \
             without it nothing there can be restored."
        ));
    }
    lines.push(format!("next: vmtwin vm set VM --also {name}"));
    lines.join("\n")
}
