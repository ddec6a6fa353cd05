//! The lease: how long what a node does counts while nothing is heard of that node.
//!
//! A node says every so often that it is there ([`Catalog::touch_node`]). The processes of a host
//! cannot be seen from another one, so a job of a host that died would hold its guest for ever. It
//! holds it no more once the guest is on another node, and the host was not heard of for the lease:
//! both, since a node that only lost the database still works on what it runs.
//!
//! Times are those of the hosts' clocks, which are to differ by less than the lease.

use std::time::Duration;

use time::OffsetDateTime;

use crate::error::{Error, Result, database};
use crate::id::{NodeId, VmId};
use crate::job::Job;
use crate::node::{self, Node};
use crate::open::Catalog;
use crate::process::ProcessIdentity;
use crate::row::Fields;
use crate::setting;
use crate::sql::{Session, query};
use crate::timestamp;
use crate::vm::VmState;

/// The setting, seconds as text.
const LEASE: &str = "cluster.lease-s";
/// Where it is not set.
const DEFAULT: Duration = Duration::from_secs(600);
/// Longest one.
const MAX_S: u64 = 30 * 86_400;

impl Catalog {
    /// How long a node counts as there after it was heard of last: setting `cluster.lease-s`, or ten
    /// minutes.
    pub async fn lease(&self) -> Result<Duration> {
        of(&mut *self.read().await?).await
    }

    /// Notes that a node is there; nothing if it is none (any more).
    pub async fn touch_node(&self, id: &NodeId) -> Result<()> {
        let mut write = self.write().await?;
        query("UPDATE node SET seen_at = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(timestamp::to_text(timestamp::now()))
            .execute(&mut write)
            .await
            .map_err(database("note that a node is there"))?;
        self.commit(write).await
    }
}

/// After a copy of an earlier time was loaded, and before that is committed: undoes what was right at
/// that time alone. Nodes are not silent that were heard of since, as `before` says, nor those that
/// were not known before: or others would take their guests. And deletions that waited then wait for
/// nothing, as they may have been taken back since; returns how many.
pub(crate) async fn wake(write: &mut Session, before: &[Node]) -> Result<u64> {
    let now = timestamp::now();
    for node in node::list(write).await? {
        let known = before.iter().find(|known| known.id == node.id);
        let heard = known.map_or(now, |known| known.seen_at);
        query("UPDATE node SET seen_at = $2 WHERE id = $1 AND seen_at < $2")
            .bind(node.id.as_str())
            .bind(timestamp::to_text(heard))
            .execute(write)
            .await
            .map_err(database("note when a node was heard of"))?;
    }
    let dropped = query("DELETE FROM deletion")
        .execute(write)
        .await
        .map_err(database("take back deletions"))?;
    Ok(dropped.rows_affected())
}

impl Node {
    /// Whether it was heard of within `lease` before `now`.
    pub fn is_there(&self, lease: Duration, now: OffsetDateTime) -> bool {
        now - self.seen_at < lease
    }
}

/// Whether nothing is to be waited for from another host: it is no node any more, or was not heard of for
/// the lease. Never so of this host, whose processes can be seen.
pub(crate) async fn is_silent(session: &mut Session, host: &str) -> Result<bool> {
    if host == ProcessIdentity::of_self()?.host {
        return Ok(false);
    }
    match heard_of(session, host).await? {
        None => Ok(true),
        Some(heard) => Ok(timestamp::now() - heard >= of(session).await?),
    }
}

/// When a host was heard of last; never where it is no node.
async fn heard_of(session: &mut Session, host: &str) -> Result<Option<OffsetDateTime>> {
    let heard = query("SELECT MAX(seen_at) AS heard FROM node WHERE host = $1")
        .bind(host)
        .fetch_one(session)
        .await
        .map_err(database("ask when a host was heard of"))?;
    Fields::new("node", &heard).optional_time("heard")
}

/// Whether a job of another host holds its VM no more: the VM runs on another node now, and nothing
/// was heard of the host for the lease. A VM that is off there may be a definition that was left
/// behind, and runs on the silent host still, unless that is no node any more. What the job began stays in its journal for that host, whose
/// undos leave any other process alone.
pub(crate) async fn is_over(session: &mut Session, vm: &VmId, job: &Job) -> Result<bool> {
    let Some((host, state)) = whereabouts(session, vm).await? else {
        return Ok(false);
    };
    if host == job.owner.host {
        return Ok(false);
    }
    // A host that is no node any more was heard of last when its job began.
    let heard = heard_of(session, &job.owner.host).await?;
    if heard.is_some() && state != VmState::Running.as_str() {
        return Ok(false);
    }
    let heard = heard.unwrap_or(job.started_at);
    Ok(timestamp::now() - heard >= of(session).await?)
}

/// The host of the node that a VM is on, and the VM's state there.
async fn whereabouts(session: &mut Session, vm: &VmId) -> Result<Option<(String, String)>> {
    let row = query(
        "SELECT n.host AS host, v.state AS state FROM vm v JOIN node n ON n.id = v.node \
         WHERE v.id = $1",
    )
    .bind(vm.as_str())
    .fetch_optional(session)
    .await
    .map_err(database("ask where a VM is"))?;
    let Some(row) = row else { return Ok(None) };
    let fields = Fields::new("node", &row);
    Ok(Some((fields.text("host")?, fields.text("state")?)))
}

async fn of(session: &mut Session) -> Result<Duration> {
    let Some(text) = setting::get(session, LEASE).await? else {
        return Ok(DEFAULT);
    };
    let seconds = text.parse().ok().filter(|s| (1..=MAX_S).contains(s));
    seconds.map(Duration::from_secs).ok_or(Error::Damaged {
        table: "setting",
        column: LEASE,
        value: text,
    })
}
