//! What a restore did: on each node, and with the database.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmtwin_cluster::plan::{Action, Item, Plan};

use super::super::restore::RestoreReport;
use super::database::DatabasePlan;
use crate::{EXIT_FAILED, EXIT_WARNINGS};

/// What a restore did.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterRestoreReport {
    /// Nothing was done.
    pub(crate) dry_run: bool,
    /// By the names of the backup.
    pub(crate) nodes: Vec<NodeRestoreReport>,
    /// What was to be done with the database, where it belongs to the restore.
    pub(crate) database_plan: Option<DatabasePlan>,
    /// What was there before.
    pub(crate) safety_backup: Option<PathBuf>,
    /// The database, where it was restored.
    pub(crate) database: Option<RestoreReport>,
    /// Why it was not.
    pub(crate) database_error: Option<String>,
    /// What is to be done now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

/// What it did on one node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeRestoreReport {
    /// The node of the backup.
    pub(crate) node: String,
    /// The node that it was restored on, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) onto: Option<String>,
    /// What was to be done.
    pub(crate) plan: Option<Plan>,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// Why nothing was tried: it is down, it does not let us.
    pub(crate) not_reached: Option<String>,
    /// Why it ended before its end.
    pub(crate) error: Option<String>,
}

/// What was done on a node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outcome {
    /// What was there before, on the node itself.
    #[serde(
        default,
        rename = "kept_on_node",
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) safety_backup: Option<PathBuf>,
    /// What was made or changed: `network lan`.
    pub(crate) deployed: Vec<String>,
    /// What was not, and why.
    pub(crate) not_deployed: Vec<NotDeployed>,
}

/// A thing that was not restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

impl Outcome {
    /// Nothing is done yet.
    pub(in crate::cluster) fn before(plan: &Plan) -> Outcome {
        let refused = |item: &&Item| matches!(item.action, Action::Cannot | Action::LeftAlone);
        let not_deployed = plan.items.iter().filter(refused);
        let not_deployed = not_deployed.map(|item| NotDeployed {
            what: named(item),
            why: item.why.clone().unwrap_or_default(),
            failed: false,
        });
        Outcome {
            not_deployed: not_deployed.collect(),
            ..Outcome::default()
        }
    }
}

impl NodeRestoreReport {
    /// A node of which nothing is known yet.
    pub(super) fn of(node: &str, onto: Option<String>) -> NodeRestoreReport {
        NodeRestoreReport {
            node: node.to_owned(),
            onto,
            plan: None,
            outcome: Outcome::default(),
            not_reached: None,
            error: None,
        }
    }

    /// Whether something that the plan held was not done.
    fn is_failed(&self) -> bool {
        self.error.is_some() || self.outcome.not_deployed.iter().any(|one| one.failed)
    }

    fn is_whole(&self) -> bool {
        self.not_reached.is_none() && self.plan.as_ref().is_some_and(Plan::is_whole)
    }

    /// Whether there is something to do on it.
    pub(super) fn has_work(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| !plan.is_done())
    }

    fn lines(&self, lines: &mut Vec<String>) {
        let node = match &self.onto {
            Some(onto) => format!("{} (on {onto})", self.node),
            None => self.node.clone(),
        };
        let outcome = &self.outcome;
        let deployed = outcome.deployed.iter();
        lines.extend(deployed.map(|what| format!("{node}: deployed: {what}")));
        for one in &outcome.not_deployed {
            lines.push(format!("{node}: NOT deployed: {}: {}", one.what, one.why));
        }
        if let Some(why) = &self.not_reached {
            lines.push(format!("{node}: NOT restored: {why}"));
        }
        if let Some(why) = &self.error {
            lines.push(format!("{node}: NOT done: {why}"));
        }
        if let Some(file) = &outcome.safety_backup {
            lines.push(format!("{node}: before, on the node: {}", file.display()));
        }
    }
}

impl ClusterRestoreReport {
    /// Nothing is known yet.
    pub(super) fn new(dry_run: bool) -> ClusterRestoreReport {
        ClusterRestoreReport {
            dry_run,
            nodes: Vec::new(),
            database_plan: None,
            safety_backup: None,
            database: None,
            database_error: None,
            warnings: Vec::new(),
        }
    }

    /// Whether something failed that was tried.
    pub(crate) fn is_failed(&self) -> bool {
        self.database_error.is_some() || self.nodes.iter().any(NodeRestoreReport::is_failed)
    }

    pub(crate) fn exit_code(&self) -> i32 {
        let warned = self.database.as_ref();
        let warned = warned.is_some_and(|database| !database.warnings.is_empty())
            || !self.warnings.is_empty();
        let whole = self.nodes.iter().all(NodeRestoreReport::is_whole);
        match (self.is_failed(), whole && !warned) {
            (true, _) => EXIT_FAILED,
            (false, true) => 0,
            (false, false) => EXIT_WARNINGS,
        }
    }

    /// The summary; plans were shown before.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for node in &self.nodes {
            // A dry run has told what a plan says.
            if !self.dry_run || node.plan.is_none() {
                node.lines(&mut lines);
            }
        }
        if self.dry_run {
            let database = self.database_plan.as_ref();
            if database.is_some_and(|database| database.rows > 0 && !database.is_same()) {
                lines.push("the database is replaced only with --replace-database".to_owned());
            }
            lines.push("nothing was changed (--dry-run)".to_owned());
            return lines.join("\n");
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
        let warnings = self.warnings.iter();
        lines.extend(warnings.map(|text| format!("warning: {text}")));
        let idle = |node: &NodeRestoreReport| node.outcome.deployed.is_empty();
        let missed = self.nodes.iter().any(|node| node.not_reached.is_some());
        if self.is_failed() || missed {
            // What the database holds since is not to be replaced once more.
            let how = match self.database.is_some() {
                true => "run the same with --skip-database",
                false => "run the same again",
            };
            lines.push(format!(
                "{how} when the cause is gone: it goes on from here"
            ));
        } else if self.nodes.iter().all(idle) && self.database.is_none() {
            lines.push("nothing was to be done".to_owned());
        }
        lines.join("\n")
    }
}
