//! What two nodes say to each other about a restore. All of it is JSON, and what comes is bounded,
//! and cleaned before a person sees it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmtwin_cluster::plan::{Options, Plan, Step};

use super::super::secrets::Opened;
use super::report::Outcome;

/// Most of a request: the document of a node, and what JSON adds to it, bytes.
pub(in crate::cluster) const MAX_ORDER_BYTES: usize = 384 << 20;
/// Most of a plan and of an outcome, bytes.
pub(super) const MAX_ANSWER_BYTES: u64 = 32 << 20;
/// Longest text of an answer that is shown, characters.
const MAX_TEXT: usize = 2000;

/// A restore that a node is asked for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct Order {
    /// The node's document in the backup, XML.
    pub(in crate::cluster) document: String,
    pub(in crate::cluster) options: Options,
    /// The node's secrets in the backup, where they were opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) secrets: Option<Opened>,
    /// The plan that was agreed to, by its [`digest`]: another one is not done.
    pub(in crate::cluster) agreed: Option<String>,
}

/// What a node would do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct Planned {
    pub(in crate::cluster) plan: Plan,
    pub(in crate::cluster) digest: String,
}

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cluster) enum State {
    Running,
    /// It has an outcome, or an error.
    Ended,
    /// The agent was ended before it was done.
    Interrupted,
}

/// A restore that a node has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cluster) struct Status {
    /// The id that the request had.
    pub(in crate::cluster) id: String,
    pub(in crate::cluster) state: State,
    /// Things that were tried, of `total`.
    pub(in crate::cluster) done: usize,
    pub(in crate::cluster) total: usize,
    /// What is being done.
    pub(in crate::cluster) what: String,
    pub(in crate::cluster) outcome: Option<Outcome>,
    pub(in crate::cluster) error: Option<String>,
}

/// A plan by one short text: two are the same if and only if theirs are.
pub(in crate::cluster) fn digest(plan: &Plan) -> serde_json::Result<String> {
    Ok(vmtwin_server::sha256_hex(&serde_json::to_vec(plan)?))
}

/// A plan without what its steps define: who asked has it, and is to look at the rest.
pub(in crate::cluster) fn outline(mut plan: Plan) -> Plan {
    for step in plan.items.iter_mut().flat_map(|item| &mut item.steps) {
        match step {
            Step::Define { definition }
            | Step::StartTransient { definition }
            | Step::CreateVolume { definition, .. }
            | Step::RedefineSnapshot { definition, .. }
            | Step::RedefineCheckpoint { definition, .. } => definition.clear(),
            Step::WriteNvram { content, .. } => content.clear(),
            Step::AddInterface { .. }
            | Step::AddPort { .. }
            | Step::SetVirtualFunctions { .. }
            | Step::MakeMdev { .. }
            | Step::SetValue
            | Step::KeepFile
            | Step::BuildPool
            | Step::Start
            | Step::Autostart { .. } => {}
        }
    }
    plan
}

/// A text of another node, for people: one line, not too long.
pub(in crate::cluster) fn clean(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_TEXT).map(plain).collect()
}

/// An outcome that another node tells.
pub(super) fn clean_outcome(mut outcome: Outcome) -> Outcome {
    outcome.deployed = outcome.deployed.iter().map(|what| clean(what)).collect();
    for one in &mut outcome.not_deployed {
        (one.what, one.why) = (clean(&one.what), clean(&one.why));
    }
    let path = outcome.safety_backup.as_ref();
    outcome.safety_backup = path.map(|path| PathBuf::from(clean(&path.to_string_lossy())));
    outcome
}

/// How far another node says it has come.
pub(super) fn clean_status(mut status: Status) -> Status {
    status.what = clean(&status.what);
    status.error = status.error.as_deref().map(clean);
    status.outcome = status.outcome.map(clean_outcome);
    status
}

/// A plan that another node tells, under the name that we know it by. What its steps hold is shown to
/// nobody.
pub(super) fn clean_plan(mut plan: Plan, node: &str) -> Plan {
    node.clone_into(&mut plan.node);
    plan.warnings = plan.warnings.iter().map(|text| clean(text)).collect();
    for item in &mut plan.items {
        (item.kind, item.name) = (clean(&item.kind), clean(&item.name));
        item.why = item.why.as_deref().map(clean);
        for list in [&mut item.differences, &mut item.warnings] {
            *list = list.iter().map(|text| clean(text)).collect();
        }
    }
    plan
}
