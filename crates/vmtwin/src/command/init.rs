//! `vmtwin init`: a repository and a catalog.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use vmtwin_repository::{Error, Location, Password, Repository};

use crate::db::Db;
use crate::home::{Home, make_password};
use crate::ui::Ui;

/// What was made.
#[derive(Debug, Serialize)]
struct InitReport {
    home: String,
    /// The catalog: a file, or the URL of a database.
    catalog: String,
    repository: String,
    repository_id: String,
    /// Whether the repository was made now (else it was there and the password opens it).
    created: bool,
    /// The password, where it was made now: shown this once.
    password: Option<String>,
    password_file: Option<String>,
}

/// Makes what is missing. May be repeated: an existing repository that the password opens is kept.
pub(crate) fn run(home: &Home, ui: &Ui) -> Result<()> {
    let location = home.location()?;
    let (password, made) = match home.password()? {
        Some(password) => (password, None),
        None => {
            let text = make_password()?;
            (Password::random(text.clone()), Some(text))
        }
    };
    let hint = "cannot be opened with the password given; set VMTWIN_PASSWORD or --password-file to \
                its own";
    let (repository, created) = make_or_open(home, &location, &password, hint)?;
    let password_file = match (&made, created) {
        (Some(text), true) => Some(home.keep_password(text)?),
        _ => None,
    };
    home.keep_location(&location)?;
    let db = Db::open(home)?;
    let report = InitReport {
        home: home.dir().display().to_string(),
        catalog: db.place(),
        repository: location.to_string(),
        repository_id: repository.id(),
        created,
        password: password_file.as_ref().and(made),
        password_file: password_file.map(|p| p.display().to_string()),
    };
    ui.result(&report, || text(&report))
}

/// The repository at a place, and whether it was made now. `hint` says what to do about one that is
/// there and has another password.
pub(super) fn make_or_open(
    home: &Home,
    location: &Location,
    password: &Password,
    hint: &str,
) -> Result<(Repository, bool)> {
    let cannot = || format!("cannot make a repository at {location}");
    let store = home.store(location).with_context(cannot)?;
    match Repository::init_with(Arc::clone(&store), password) {
        Ok(repository) => Ok((repository, true)),
        Err(Error::AlreadyExists { .. }) => Repository::open_with(store, password)
            .map(|repository| (repository, false))
            .with_context(|| format!("a repository exists at {location}, and {hint}")),
        Err(other) => Err(other).with_context(cannot),
    }
}

fn text(report: &InitReport) -> String {
    let verb = if report.created { "made" } else { "found" };
    let mut lines = vec![
        format!(
            "repository {verb}: {} (id {})",
            report.repository,
            &report.repository_id[..8]
        ),
        format!("catalog: {}", report.catalog),
    ];
    if let (Some(password), Some(file)) = (&report.password, &report.password_file) {
        lines.push(format!(
            "password: {password}\n  Shown this once and kept in {file}. Write it down elsewhere: \
             without it nothing can be restored."
        ));
    }
    lines.push("next: vmtwin vm add NAME --qmp SOCKET".into());
    lines.join("\n")
}
