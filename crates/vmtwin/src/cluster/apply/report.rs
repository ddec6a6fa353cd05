//! What a restore of a node did.

use std::path::PathBuf;

use serde::Serialize;
use vmtwin_cluster::plan::{Action, Item, Plan};

use super::super::restore::RestoreReport;
use crate::{EXIT_FAILED, EXIT_WARNINGS};

/// What a restore of a node did.
#[derive(Debug, Serialize)]
pub(crate) struct NodeRestoreReport {
    /// What was to be done.
    pub(crate) plan: Plan,
    /// Nothing was done.
    pub(crate) dry_run: bool,
    /// What was there before.
    pub(crate) safety_backup: Option<PathBuf>,
    /// What was made or changed: `network lan`.
    pub(crate) deployed: Vec<String>,
    /// What was not, and why.
    pub(crate) not_deployed: Vec<NotDeployed>,
    /// The database, where it was restored.
    pub(crate) database: Option<RestoreReport>,
    /// Why it was not.
    pub(crate) database_error: Option<String>,
}

/// A thing that was not restored.
#[derive(Debug, Serialize)]
pub(crate) struct NotDeployed {
    /// The thing: `network lan`.
    pub(crate) what: String,
    pub(crate) why: String,
    /// It was tried, or its turn did not come; the plan said nothing against it.
    pub(crate) failed: bool,
}

/// A thing in words.
pub(super) fn named(item: &Item) -> String {
    format!("{} {}", item.kind, item.name).trim().to_owned()
}

impl NodeRestoreReport {
    /// Nothing is done yet.
    pub(super) fn of(plan: Plan, dry_run: bool) -> NodeRestoreReport {
        let refused = |item: &&Item| matches!(item.action, Action::Cannot | Action::LeftAlone);
        let not_deployed = plan.items.iter().filter(refused);
        let not_deployed = not_deployed.map(|item| NotDeployed {
            what: named(item),
            why: item.why.clone().unwrap_or_default(),
            failed: false,
        });
        NodeRestoreReport {
            not_deployed: not_deployed.collect(),
            plan,
            dry_run,
            safety_backup: None,
            deployed: Vec::new(),
            database: None,
            database_error: None,
        }
    }

    /// Whether something that the plan held was not done.
    pub(crate) fn is_failed(&self) -> bool {
        self.database_error.is_some() || self.not_deployed.iter().any(|one| one.failed)
    }

    pub(crate) fn exit_code(&self) -> i32 {
        let warned = self
            .database
            .as_ref()
            .is_some_and(|d| !d.warnings.is_empty());
        match (self.is_failed(), self.plan.is_whole() && !warned) {
            (true, _) => EXIT_FAILED,
            (false, true) => 0,
            (false, false) => EXIT_WARNINGS,
        }
    }

    /// The summary; the plan was shown before.
    pub(crate) fn text(&self) -> String {
        if self.dry_run {
            return "nothing was changed (--dry-run)".to_owned();
        }
        let mut lines = Vec::new();
        lines.extend(self.deployed.iter().map(|what| format!("deployed: {what}")));
        for one in &self.not_deployed {
            lines.push(format!("NOT deployed: {}: {}", one.what, one.why));
        }
        if let Some(file) = &self.safety_backup {
            lines.push(format!("before: {}", file.display()));
        }
        if let Some(database) = &self.database {
            let rows = database.content.rows();
            lines.push(format!("{}: restored, {rows} rows", database.database));
            if let Some(copy) = &database.copy {
                lines.push(format!("before: {copy}"));
            }
            let warnings = database.warnings.iter();
            lines.extend(warnings.map(|text| format!("warning: {text}")));
        }
        if let Some(why) = &self.database_error {
            lines.push(format!("NOT deployed: the database: {why}"));
        }
        if self.is_failed() {
            lines
                .push("run the same again when the cause is gone: it goes on from here".to_owned());
        } else if self.deployed.is_empty() && self.database.is_none() {
            lines.push("nothing was to be done".to_owned());
        }
        lines.join("\n")
    }
}
