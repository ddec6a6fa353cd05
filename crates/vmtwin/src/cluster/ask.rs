//! Asking the agents of other nodes: all at once up to a limit, each within its time, each answer
//! into a file of its own. The configuration of one node at a time is held in memory per processor,
//! while it is checked.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc};
use vmtwin_catalog::{CertificateState, Node};
use vmtwin_cluster::{EntryPath, NodeDocument};
use vmtwin_server::{Client, Credentials};

use super::agent::{NodeStatus, WARNINGS};
use super::membership::credentials;
use super::secrets::{self, Recipients};
use crate::cancel::Cancel;
use crate::db::Db;
use crate::home::Home;

/// Nodes that are asked at one time. Those that do not answer take all of their time, and shall not let
/// others wait; one that is asked needs some 100 KiB of memory.
const AT_ONCE: usize = 1024;
/// Files that asking a node needs: its connection, its answer, and one that is being closed.
const FILES_OF_ONE: u64 = 3;
/// Files that all else needs.
const FILES_OF_OTHERS: u64 = 128;
/// Documents that are checked at one time.
const CHECKS_AT_ONCE: usize = 2;
/// Most tries for one node.
const TRIES: u32 = 4;
/// Pause before the second try; it doubles, and half of it is chance.
const PAUSE: Duration = Duration::from_millis(400);
/// How long a node may take to say that it is there.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Most of that answer, bytes.
const MAX_STATUS_BYTES: u64 = 64 << 10;
/// How often Ctrl-C is looked at.
const TICK: Duration = Duration::from_millis(100);

/// A node as `cluster nodes` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct NodeLine {
    #[serde(flatten)]
    pub(crate) node: Node,
    /// Whether its agent answers; nothing if it has none, or this node may not ask.
    pub(crate) up: Option<bool>,
    /// Guests that it says it has.
    pub(crate) guests: Option<u64>,
}

/// A configuration that a node gave.
pub(super) struct Given {
    /// The document, from its beginning.
    pub(super) file: File,
    pub(super) taken_at: OffsetDateTime,
    pub(super) warnings: Option<String>,
}

/// How one node answered.
pub(super) struct Reply {
    /// Which one of those that were asked.
    pub(super) index: usize,
    pub(super) given: Result<Given>,
    /// Its secrets, where they were asked for and it gave its configuration.
    pub(super) secrets: Option<Result<secrets::Given>>,
    pub(super) seconds: f64,
    pub(super) tries: u32,
}

/// How many of `nodes` may be asked at one time: each needs files, of which a process may have a limited
/// number, that it may raise up to another one.
fn at_once(nodes: usize) -> usize {
    let wanted = AT_ONCE.min(nodes.max(1));
    let limits = getrlimit(Resource::Nofile);
    let needed = wanted as u64 * FILES_OF_ONE + FILES_OF_OTHERS;
    let most = needed.min(limits.maximum.unwrap_or(u64::MAX));
    let current = limits.current.unwrap_or(u64::MAX);
    if current >= most {
        return fitting(wanted, current);
    }
    let raised = Rlimit {
        current: Some(most),
        ..limits
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => fitting(wanted, most),
        Err(_) => fitting(wanted, current),
    }
}

/// How many can be asked with so many files; one in any case.
fn fitting(wanted: usize, files: u64) -> usize {
    let room = files.saturating_sub(FILES_OF_OTHERS) / FILES_OF_ONE;
    wanted
        .min(usize::try_from(room).unwrap_or(usize::MAX))
        .max(1)
}

/// A runtime for conversations with nodes.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// The client of this node; none if it has no certificate.
pub(super) fn client(home: &Home) -> Result<Option<Client>> {
    let Some((cluster, credentials)) = credentials(home)? else {
        return Ok(None);
    };
    client_of(home, &credentials, &cluster).map(Some)
}

/// A client of these credentials. Who answers it is looked up in the catalog, as who asks an agent is.
pub(super) fn client_of(home: &Home, credentials: &Credentials, cluster: &str) -> Result<Client> {
    let db = Db::open(home)?;
    let counts = move |fingerprint: &str| {
        let state = db.run(async |catalog| catalog.certificate(fingerprint).await)?;
        Ok(matches!(state, CertificateState::Valid(_)))
    };
    Ok(Client::new(credentials, cluster, counts)?)
}

/// The nodes of the cluster, and which of them answer.
pub(crate) fn nodes(home: &Home, db: &Db) -> Result<Vec<NodeLine>> {
    let nodes = db.run(async |catalog| catalog.nodes().await)?;
    let Some(client) = client(home)? else {
        let line = |node| NodeLine {
            node,
            up: None,
            guests: None,
        };
        return Ok(nodes.into_iter().map(line).collect());
    };
    runtime()?.block_on(async {
        let room = Arc::new(Semaphore::new(at_once(nodes.len())));
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let (client, room) = (client.clone(), Arc::clone(&room));
                tokio::spawn(async move {
                    let _permit = room.acquire().await;
                    line(&client, node).await
                })
            })
            .collect();
        let mut lines = Vec::new();
        for line in asked {
            lines.push(line.await?);
        }
        Ok(lines)
    })
}

async fn line(client: &Client, node: Node) -> NodeLine {
    let Some(address) = node.address.clone() else {
        return NodeLine {
            node,
            up: None,
            guests: None,
        };
    };
    let status = async {
        let answer = client.get(&address, node.id.as_str(), "/v1/node").await?;
        let text = answer.bytes(MAX_STATUS_BYTES).await?;
        anyhow::Ok(serde_json::from_slice::<NodeStatus>(&text)?)
    };
    let status = tokio::time::timeout(STATUS_LIMIT, status).await;
    let status = status.ok().and_then(Result::ok);
    NodeLine {
        node,
        up: Some(status.is_some()),
        guests: status.and_then(|status| status.guests),
    }
}

/// What nodes are asked for, and how.
pub(super) struct Asking<'a> {
    pub(super) client: Client,
    /// How long a node may take.
    pub(super) limit: Duration,
    /// Where answers are kept.
    pub(super) scratch: &'a Path,
    /// Whom they shall seal their secrets for, if they are asked for them.
    pub(super) recipients: Option<&'a Recipients>,
    pub(super) cancel: Cancel,
}

/// Asks nodes for their configuration, and hands each reply over as it comes.
pub(super) fn configurations(
    asking: &Asking<'_>,
    nodes: &[Node],
    mut reply: impl FnMut(Reply) -> Result<()>,
) -> Result<()> {
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let mut replies = begin(asking, nodes);
        loop {
            match tokio::time::timeout(TICK, replies.recv()).await {
                Ok(None) => return Ok(()),
                Ok(Some(one)) => tokio::task::block_in_place(|| reply(one))?,
                Err(_) => {}
            }
            if asking.cancel.is_set() {
                bail!("stopped by a signal");
            }
        }
    });
    // Those that are still asked are let go.
    runtime.shutdown_background();
    done
}

/// Begins to ask all of them; the replies, in the order in which they come.
fn begin(asking: &Asking<'_>, nodes: &[Node]) -> mpsc::Receiver<Reply> {
    // Of one reply: who is not taken up yet waits with its file, not with its document.
    let (sender, replies) = mpsc::channel(1);
    let room = Arc::new(Semaphore::new(at_once(nodes.len())));
    let checks = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
    let (limit, recipients) = (asking.limit, asking.recipients.map(Recipients::texts));
    for (index, node) in nodes.iter().enumerate() {
        let asker = Asker {
            client: asking.client.clone(),
            node: node.clone(),
            scratch: asking.scratch.to_owned(),
            checks: Arc::clone(&checks),
            limit,
        };
        let recipients = recipients.clone();
        let (sender, room) = (sender.clone(), Arc::clone(&room));
        tokio::spawn(async move {
            let _permit = room.acquire().await;
            let begun = Instant::now();
            let mut tries = 0;
            let given = asker.within(&mut tries, || asker.configuration()).await;
            let secrets = match recipients.filter(|_| given.is_ok()) {
                Some(keys) => Some(asker.within(&mut 0, || asker.secrets(&keys)).await),
                None => None,
            };
            let seconds = begun.elapsed().as_secs_f64();
            let reply = Reply {
                index,
                given,
                secrets,
                seconds,
                tries,
            };
            // Nobody listens once the backup was stopped.
            let _ = sender.send(reply).await;
        });
    }
    replies
}

struct Asker {
    client: Client,
    node: Node,
    scratch: PathBuf,
    checks: Arc<Semaphore>,
    limit: Duration,
}

impl Asker {
    /// Asks until there is an answer, within the time that a node has.
    async fn within<T, F: Future<Output = Result<T>>>(
        &self,
        tries: &mut u32,
        once: impl Fn() -> F,
    ) -> Result<T> {
        let answer = tokio::time::timeout(self.limit, try_often(tries, once)).await;
        let late = |_| anyhow::anyhow!("no answer within {} s", self.limit.as_secs());
        answer.map_err(late)?
    }

    async fn secrets(&self, recipients: &[String]) -> Result<secrets::Given> {
        let address = self.node.address.as_deref().context("it has no agent")?;
        let wanted = serde_json::to_vec(&secrets::Wanted {
            recipients: recipients.to_vec(),
        })?;
        let id = self.node.id.as_str();
        let asked = self.client.post_json(address, id, secrets::PATH, wanted);
        let text = asked.await?.bytes(secrets::MAX_GIVEN_BYTES).await?;
        serde_json::from_slice(&text).context("its secrets cannot be read")
    }

    async fn configuration(&self) -> Result<Given> {
        let address = self.node.address.as_deref().context("it has no agent")?;
        let id = self.node.id.as_str();
        let answer = self.client.get(address, id, "/v1/node/config").await?;
        let warnings = answer.headers().get(WARNINGS);
        let warnings = warnings
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        // Unlinked from the beginning: nothing of it stays, whatever happens.
        let mut file = tempfile::tempfile_in(&self.scratch)?;
        let max_bytes = EntryPath::Node(self.node.name.parse()?).max_bytes();
        answer.copy_to(&mut file, max_bytes).await?;
        let node = self.node.clone();
        let _permit = self.checks.acquire().await?;
        tokio::task::spawn_blocking(move || {
            let taken_at = check(&mut file, &node)?;
            Ok(Given {
                file,
                taken_at,
                warnings,
            })
        })
        .await?
    }
}

/// Asks again while what happened may pass. The requests change nothing, so they may be repeated.
async fn try_often<T, F: Future<Output = Result<T>>>(
    tries: &mut u32,
    once: impl Fn() -> F,
) -> Result<T> {
    loop {
        *tries += 1;
        let error = match once().await {
            Ok(given) => return Ok(given),
            Err(error) => error,
        };
        let transient = error
            .downcast_ref::<vmtwin_server::Error>()
            .is_some_and(vmtwin_server::Error::is_transient);
        if !transient || *tries == TRIES {
            return Err(error);
        }
        let pause = PAUSE * 2u32.pow(*tries - 1);
        let chance = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        tokio::time::sleep(pause.mul_f64(0.5 + chance / 2.0)).await;
    }
}

/// A node answers for itself alone, with a document that can be read.
fn check(file: &mut File, node: &Node) -> Result<OffsetDateTime> {
    let mut xml = String::new();
    file.rewind()?;
    file.read_to_string(&mut xml)
        .context("its answer is no text")?;
    file.rewind()?;
    let document = NodeDocument::from_xml(&xml).context("its answer cannot be used")?;
    if document.id != node.id.as_str() || document.name.as_str() != node.name {
        bail!("its answer is that of another node ({})", document.name);
    }
    Ok(document.taken_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_asked_than_there_are_files_for() {
        assert_eq!(fitting(AT_ONCE, u64::MAX), AT_ONCE);
        assert_eq!(fitting(AT_ONCE, 1024), 298);
        assert_eq!(fitting(10, 1024), 10);
        assert_eq!(fitting(AT_ONCE, 0), 1);
        assert_eq!(at_once(0), 1);
    }
}
