//! Whether the cluster's database has this node. Its agent says there that it is alive.
//!
//! An agent whose node is not in it goes on: the database may have been lost, and when it is back the node
//! is one again, without anybody's hand on it. Until then nobody gives it anything, since who asks is looked
//! up for each request. So a node that was removed may go on too; it says so, once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vmtwin_catalog::{CertificateState, Error};

use super::agent::{Shared, blocking};
use super::membership;

/// How often a node says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How the database has this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Node,
    /// It knows that it was one.
    Removed,
    /// It never heard of it: it was made anew, or is of before.
    Unknown,
}

/// A node's word that it is there.
pub(super) struct Presence {
    agent: Shared,
    /// Where its agent answers.
    address: String,
    standing: Standing,
}

impl Presence {
    /// Says it for the first time. Fails where the node was removed: who starts its agent is told.
    pub(super) async fn begin(agent: &Shared, address: &str) -> Result<Presence> {
        let mut presence = Presence {
            agent: Arc::clone(agent),
            address: address.to_owned(),
            standing: Standing::Node,
        };
        match presence.say().await? {
            Standing::Removed => Err(Error::NodeRemoved.into()),
            standing => {
                presence.note(standing);
                Ok(presence)
            }
        }
    }

    /// Goes on saying it, for as long as it is asked to. Neither a database that is away nor one that does
    /// not have this node ends it.
    pub(super) async fn keep(&mut self) {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            match self.say().await {
                Ok(standing) => self.note(standing),
                Err(error) => tracing::warn!("cannot say that this node is there: {error:#}"),
            }
        }
    }

    async fn say(&self) -> Result<Standing> {
        let address = self.address.clone();
        let said = blocking(&self.agent, move |agent| {
            let (id, version) = (&agent.identity.id, env!("CARGO_PKG_VERSION"));
            let db = &agent.db;
            if db.run(async |catalog| catalog.see_node(id, &address, version).await)? {
                return Ok(Standing::Node);
            }
            let Some((_, credentials)) = membership::credentials(&agent.home)? else {
                return Ok(Standing::Unknown);
            };
            let fingerprint = credentials.fingerprint()?;
            let known = db.run(async |catalog| catalog.certificate(&fingerprint).await)?;
            Ok(match known {
                CertificateState::Unknown => Standing::Unknown,
                CertificateState::Valid(_) | CertificateState::Revoked => Standing::Removed,
            })
        });
        said.await
    }

    /// Tells of what has changed, not of each beat.
    fn note(&mut self, standing: Standing) {
        if standing == self.standing {
            return;
        }
        self.standing = standing;
        match standing {
            Standing::Node => tracing::warn!("this node is one of the cluster again"),
            Standing::Removed => tracing::warn!(
                "this node was removed from the cluster: the others give it nothing; let it join again \
                 (vmtwin cluster join TOKEN), or end its vmtwin serve"
            ),
            Standing::Unknown => tracing::warn!(
                "the cluster's database does not know this node: it was made anew, or is of before this \
                 node joined. The others give it nothing until the database is brought back (vmtwin \
                 cluster restore FILE --only-database), which this agent waits for, or the node joins \
                 again (vmtwin cluster join TOKEN)"
            ),
        }
    }
}
