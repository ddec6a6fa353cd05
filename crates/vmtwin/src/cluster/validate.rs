//! A backup against the live cluster: is it whole, is it of this cluster, and what of the nodes and of the
//! database is not as it was. Nothing is changed: nodes are asked for their configuration, which each of
//! them gives to every other one.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use vmtwin_catalog::Node;
use vmtwin_cluster::manifest::{self, NodeState};
use vmtwin_cluster::plan::{Options, Plan};
use vmtwin_cluster::{Archive, NodeDocument};

use super::apply::DatabasePlan;
use super::apply::host::{plan_elsewhere, plan_of};
use super::apply::source::Source;
use super::ask;
use super::backup::{own_node, refuse_other_cluster};
use super::cli::ValidateArgs;
use super::secrets::Opening;
use crate::db::Db;
use crate::home::Home;
use crate::ui::Ui;

/// How long another node may take, all tries together.
const NODE_LIMIT: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ValidateReport {
    /// Entries that were read to their end.
    pub(crate) entries: usize,
    /// Nodes whose secrets were opened with the key that was given.
    pub(crate) secrets_opened: Vec<String>,
    /// Why others' were not.
    pub(crate) secrets_closed: Vec<String>,
    /// Nodes of the backup that are not in the cluster any more.
    pub(crate) nodes_gone: Vec<String>,
    /// Nodes of the cluster that the backup does not know.
    pub(crate) nodes_new: Vec<String>,
    /// Nodes that are in both, by name.
    pub(crate) nodes: Vec<NodeValidation>,
    /// What a restore would do with the database; each job changes that.
    pub(crate) database: Option<DatabasePlan>,
}

/// What was found of a node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeValidation {
    pub(crate) node: String,
    /// What a restore of it would do.
    pub(crate) plan: Option<Plan>,
    /// Why that is not known.
    pub(crate) not_compared: Option<String>,
}

impl NodeValidation {
    fn of(node: &manifest::Node, plan: Result<Plan>) -> NodeValidation {
        let (plan, why) = match plan {
            Ok(plan) => (Some(plan), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        NodeValidation {
            node: node.name.to_string(),
            plan,
            not_compared: why,
        }
    }
}

impl ValidateReport {
    /// Whether nodes are as they were, all of them.
    pub(crate) fn is_same(&self) -> bool {
        let lists = [&self.nodes_gone, &self.nodes_new, &self.secrets_closed];
        let is_same = |node: &NodeValidation| node.plan.as_ref().is_some_and(Plan::is_same);
        lists.iter().all(|list| list.is_empty()) && self.nodes.iter().all(is_same)
    }
}

/// Reads all of a backup and compares it.
pub(crate) fn validate(
    home: &Home,
    ui: &Ui,
    file: &Path,
    args: &ValidateArgs,
) -> Result<ValidateReport> {
    let mut archive = Archive::open(file)?;
    archive.verify()?;
    let opening = Opening::of(&args.open, &mut archive)?;
    let mut report = ValidateReport {
        entries: archive.manifest().entries.len(),
        ..ValidateReport::default()
    };
    let own = own_node(home, &archive)?;
    let backed_up = archive.manifest().nodes.clone();
    let mut source = Source::of(&mut archive, opening)?;
    for node in &backed_up {
        match source.secrets(node) {
            Ok(Some(_)) => report.secrets_opened.push(node.name.to_string()),
            Err(error) => report.secrets_closed.push(format!("{error:#}")),
            Ok(None) => {}
        }
    }
    let db = Db::open(home)?;
    refuse_other_cluster(&db, source.archive)?;
    let live = db.run(async |catalog| catalog.nodes().await)?;
    let gone = |id: &str| !live.iter().any(|node| node.id.as_str() == id);
    let new = |id: &str| !backed_up.iter().any(|node| node.id == id);
    let all_gone = backed_up.iter().filter(|node| gone(&node.id));
    report.nodes_gone = all_gone.map(|node| node.name.to_string()).collect();
    let all_new = live.iter().filter(|node| new(node.id.as_str()));
    report.nodes_new = all_new.map(|node| node.name.clone()).collect();
    let comparing = Comparing {
        home,
        db: &db,
        live: &live,
        own: own.as_ref().map(|own| own.id.as_str()),
    };
    let wanted = wanted(&backed_up, args)?;
    if args.node.is_none() && args.kind.is_none() {
        report.database = DatabasePlan::of(&db, source.archive)?;
    }
    let options = Options {
        sections: args.kind.map(Into::into).into_iter().collect(),
        ..Options::default()
    };
    let spinner = ui.spinner("comparing");
    report.nodes = comparing.all(&mut source, &wanted, &options)?;
    spinner.finish_and_clear();
    Ok(report)
}

/// Those of the backup's nodes that are to be compared.
fn wanted<'a>(all: &'a [manifest::Node], args: &ValidateArgs) -> Result<Vec<&'a manifest::Node>> {
    let is_wanted =
        |node: &&manifest::Node| args.node.as_ref().is_none_or(|name| node.name == *name);
    let wanted: Vec<_> = all.iter().filter(is_wanted).collect();
    match (&args.node, wanted.is_empty()) {
        (Some(name), true) => bail!("the backup knows no node {name}"),
        _ => Ok(wanted),
    }
}

/// What nodes are compared with.
struct Comparing<'a> {
    home: &'a Home,
    db: &'a Db,
    /// Nodes of the cluster now.
    live: &'a [Node],
    /// The id of this one.
    own: Option<&'a str>,
}

impl Comparing<'_> {
    /// This node by what it has, others by what their agents give.
    fn all(
        &self,
        source: &mut Source<'_>,
        nodes: &[&manifest::Node],
        options: &Options,
    ) -> Result<Vec<NodeValidation>> {
        let client = ask::client(self.home)?;
        let (mut found, mut to_ask, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for node in nodes {
            let row = self.live.iter().find(|row| row.id.as_str() == node.id);
            let why = match row {
                // Told as one that is gone.
                None => continue,
                _ if node.state == NodeState::Missing => "the backup holds no configuration of it",
                Some(_) if self.own == Some(&node.id) => {
                    found.push(NodeValidation::of(node, self.own(source, node, options)));
                    continue;
                }
                Some(row) if row.address.is_none() => "it has no agent (vmtwin serve)",
                _ if client.is_none() => {
                    "this node has no certificate to ask it with (vmtwin cluster join TOKEN)"
                }
                Some(row) => {
                    to_ask.push(*node);
                    rows.push(row.clone());
                    continue;
                }
            };
            found.push(NodeValidation::of(node, Err(anyhow::anyhow!(why))));
        }
        if let Some(client) = client {
            let asking = ask::Asking {
                client,
                limit: NODE_LIMIT,
                scratch: &self.home.run_dir()?,
                recipients: None,
                cancel: self.home.cancel(),
            };
            ask::configurations(&asking, &rows, |reply| {
                let node = to_ask[reply.index];
                let plan = reply
                    .given
                    .and_then(|given| self.other(source, node, given, options));
                found.push(NodeValidation::of(node, plan));
                Ok(())
            })?;
        }
        found.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(found)
    }

    fn own(
        &self,
        source: &mut Source<'_>,
        node: &manifest::Node,
        options: &Options,
    ) -> Result<Plan> {
        let (document, options) = source.document(&node.name, options)?;
        // Why they cannot be opened is told already.
        let opened = source.secrets(node).ok().flatten();
        plan_of((self.home, self.db), (&document, opened), &options)
    }

    fn other(
        &self,
        source: &mut Source<'_>,
        node: &manifest::Node,
        mut given: ask::Given,
        options: &Options,
    ) -> Result<Plan> {
        let mut xml = String::new();
        given.file.read_to_string(&mut xml)?;
        let now = NodeDocument::from_xml(&xml)?;
        let (document, options) = source.document(&node.name, options)?;
        plan_elsewhere(self.db, &document, &now, &options)
    }
}
