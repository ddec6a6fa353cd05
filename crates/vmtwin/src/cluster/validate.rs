//! A backup against the live cluster: is it whole, is it of this cluster, and what of this node and
//! of the nodes' table is not as it was. Nothing is changed.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use vmtwin_cluster::plan::Plan;
use vmtwin_cluster::{Archive, EntryPath, NodeDocument, NodeName};

use super::apply::host::plan_of;
use super::backup::{own_node, refuse_other_cluster};
use super::cli::OpenArgs;
use super::secrets::Opening;
use crate::db::Db;
use crate::home::Home;

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
    /// What a restore of this node would do.
    pub(crate) plan: Option<Plan>,
    /// Why that is not known.
    pub(crate) plan_error: Option<String>,
}

impl ValidateReport {
    /// Whether all is as it was.
    pub(crate) fn is_same(&self) -> bool {
        let lists = [&self.nodes_gone, &self.nodes_new, &self.secrets_closed];
        lists.iter().all(|list| list.is_empty())
            && self.plan_error.is_none()
            && self.plan.as_ref().is_none_or(Plan::is_same)
    }
}

/// Reads all of a backup and compares it.
pub(crate) fn validate(home: &Home, file: &Path, open: &OpenArgs) -> Result<ValidateReport> {
    let mut archive = Archive::open(file)?;
    archive.verify()?;
    let opening = Opening::of(open, &mut archive)?;
    let mut report = ValidateReport {
        entries: archive.manifest().entries.len(),
        ..ValidateReport::default()
    };
    for node in archive.manifest().nodes.clone() {
        if archive
            .manifest()
            .entry(&EntryPath::Node(node.name.clone()))
            .is_some()
        {
            read_node(&mut archive, &node.name)?;
        }
        let opened = opening.as_ref();
        match opened.map(|opening| opening.node(&mut archive, &node)) {
            Some(Ok(Some(_))) => report.secrets_opened.push(node.name.to_string()),
            Some(Err(error)) => report.secrets_closed.push(format!("{error:#}")),
            Some(Ok(None)) | None => {}
        }
    }
    let db = Db::open(home)?;
    refuse_other_cluster(&db, &archive)?;
    let live = db.run(async |catalog| catalog.nodes().await)?;
    let backed_up = &archive.manifest().nodes;
    let gone = |id: &str| !live.iter().any(|node| node.id.as_str() == id);
    let new = |id: &str| !backed_up.iter().any(|node| node.id == id);
    report.nodes_gone = backed_up
        .iter()
        .filter(|node| gone(&node.id))
        .map(|node| node.name.to_string())
        .collect();
    report.nodes_new = live
        .iter()
        .filter(|node| new(node.id.as_str()))
        .map(|node| node.name.clone())
        .collect();
    if let Some(own) = own_node(home, &archive)?
        && archive
            .manifest()
            .entry(&EntryPath::Node(own.name.clone()))
            .is_some()
    {
        let then = read_node(&mut archive, &own.name)?;
        // Why they cannot be opened is told already.
        let opened = opening.and_then(|opening| opening.node(&mut archive, &own).ok());
        match plan_of(home, &db, (&then, opened.flatten())) {
            Ok(plan) => report.plan = Some(plan),
            Err(error) => report.plan_error = Some(format!("{error:#}")),
        }
    }
    Ok(report)
}

/// The configuration of a node in a backup.
pub(crate) fn read_node(archive: &mut Archive, name: &NodeName) -> Result<NodeDocument> {
    let mut xml = String::new();
    archive
        .reader(&EntryPath::Node(name.clone()))?
        .read_to_string(&mut xml)
        .with_context(|| format!("cannot read the configuration of {name}"))?;
    Ok(NodeDocument::from_xml(&xml)?)
}
