//! Other nodes' part of a restore: their agents are sent their documents, say what they would do, and
//! do it when it was agreed to. A connection that is lost ends nothing: what was begun goes on there,
//! and is asked for again by its id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use vmtwin_catalog::NodeId;
use vmtwin_cluster::plan::{Options, Plan};
use vmtwin_server::{Client, Error};

use super::wire::{self, MAX_ANSWER_BYTES, Order, Planned, State, Status};
use super::{Job, Outcome};
use crate::cancel::Cancel;
use crate::cluster::ask;
use crate::cluster::secrets::Opened;
use crate::home::Home;
use crate::ui::Ui;

/// Nodes that are restored at one time, beside this one.
const AT_ONCE: usize = 8;
/// How long a node may take to make a plan, or to begin.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);
/// How often a node is asked how far it is.
const POLL: Duration = Duration::from_millis(300);
/// How long a node that has begun may be out of reach.
const LOST_LIMIT: Duration = Duration::from_secs(60);
/// How long nothing may move on it.
const STILL_LIMIT: Duration = Duration::from_secs(900);
/// How often Ctrl-C is looked at.
const TICK: Duration = Duration::from_millis(100);
const NO_CERTIFICATE: &str = "not asked: this node has no certificate (vmtwin cluster join TOKEN)";

/// What one agent is asked.
#[derive(Clone)]
pub(super) struct Asked {
    node: NodeId,
    address: String,
    /// Of this restore: asked twice it is begun once.
    id: String,
    /// The order without what was agreed to.
    document: Arc<str>,
    options: Options,
    secrets: Option<Arc<Opened>>,
    /// The digest of its plan.
    digest: Option<String>,
}

impl Asked {
    pub(super) fn new(
        node: &NodeId,
        address: &str,
        (document, secrets): (String, Option<Opened>),
        options: &Options,
    ) -> Result<Asked> {
        Ok(Asked {
            node: node.clone(),
            address: address.to_owned(),
            id: NodeId::random()?.to_string(),
            document: document.into(),
            options: options.clone(),
            secrets: secrets.map(Arc::new),
            digest: None,
        })
    }

    fn order(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(&Order {
            document: self.document.to_string(),
            options: self.options.clone(),
            secrets: self.secrets.as_deref().cloned(),
            agreed: self.digest.clone(),
        })?;
        if text.len() > wire::MAX_ORDER_BYTES {
            bail!("its document is too large to be sent");
        }
        Ok(text)
    }

    async fn post<T: DeserializeOwned>(&self, client: &Client, path: &str) -> Result<T> {
        let order = self.order()?;
        let answered = async {
            let asked = client.post_json(&self.address, self.node.as_str(), path, order);
            asked.await?.bytes(MAX_ANSWER_BYTES).await
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, answered).await;
        let answer = answer.map_err(|_| Error::TimedOut {
            address: self.address.clone(),
            seconds: ANSWER_LIMIT.as_secs(),
        })??;
        serde_json::from_slice(&answer).context("its answer cannot be read")
    }

    async fn status(&self, client: &Client) -> Result<Status> {
        let path = format!("/v1/node/restore/{}", self.id);
        let answered = async {
            let asked = client.get(&self.address, self.node.as_str(), &path);
            asked.await?.bytes(MAX_ANSWER_BYTES).await
        };
        let answer = tokio::time::timeout(LOST_LIMIT, answered).await;
        let answer = answer.map_err(|_| Error::TimedOut {
            address: self.address.clone(),
            seconds: LOST_LIMIT.as_secs(),
        })??;
        serde_json::from_slice(&answer).context("its answer cannot be read")
    }

    async fn plan(&self, client: &Client) -> Result<Planned> {
        self.post(client, "/v1/node/restore/plan").await
    }

    /// Has it done, and waits for the end.
    async fn apply(&self, client: &Client, progress: impl Fn(&Status)) -> Result<Outcome> {
        let path = format!("/v1/node/restore/{}", self.id);
        let mut status = None;
        let (mut heard, mut moved) = (Instant::now(), Instant::now());
        let mut done = 0;
        loop {
            let asked = match status {
                // The same request, with the same id: whether the last one came is not known.
                None => self.post(client, &path).await,
                Some(_) => self.status(client).await,
            };
            match asked {
                Ok(now) => {
                    let now = wire::clean_status(now);
                    if now.id != self.id {
                        bail!("its answer is of another restore");
                    }
                    if now.state != State::Running {
                        return ended(now);
                    }
                    progress(&now);
                    heard = Instant::now();
                    if now.done != done {
                        (done, moved) = (now.done, heard);
                    }
                    status = Some(now);
                }
                Err(error) if !is_transient(&error) => return Err(error),
                Err(error) if heard.elapsed() > LOST_LIMIT => {
                    let begun = match status {
                        Some(_) => "it goes on there by itself; ",
                        None => "",
                    };
                    return Err(
                        error.context(format!("{begun}look at it by running the same again"))
                    );
                }
                Err(_) => {}
            }
            if moved.elapsed() > STILL_LIMIT {
                bail!(
                    "nothing has moved there for {} s; it may go on",
                    STILL_LIMIT.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn ended(status: Status) -> Result<Outcome> {
    match (status.state, status.error, status.outcome) {
        (State::Ended, None, Some(outcome)) => Ok(outcome),
        (State::Interrupted, ..) => Err(anyhow!("its agent was ended before it was done")),
        (_, Some(why), _) => Err(anyhow!("{why}")),
        _ => Err(anyhow!("its answer holds no outcome")),
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Error>()
        .is_some_and(Error::is_transient)
}

/// Asks all agents what they would do. One that does not answer, or refuses, is noted so.
pub(super) fn plan(home: &Home, ui: &Ui, jobs: &mut [Job]) -> Result<()> {
    let jobs: Vec<&mut Job> = jobs.iter_mut().filter(|job| job.order.is_some()).collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let Some(client) = ask::client(home)? else {
        for job in jobs {
            job.report.not_reached = Some(NO_CERTIFICATE.to_owned());
        }
        return Ok(());
    };
    let spinner = ui.spinner("planning");
    let asked: Vec<Asked> = jobs.iter().filter_map(|job| job.order.clone()).collect();
    let plans = at_once(asked, &home.cancel(), |asked| {
        let client = client.clone();
        async move { asked.plan(&client).await }
    })?;
    spinner.finish_and_clear();
    for (job, planned) in jobs.into_iter().zip(plans) {
        match planned {
            Ok(planned) => {
                let plan: Plan = wire::clean_plan(planned.plan, &job.report.node);
                job.report.outcome = Outcome::before(&plan);
                job.report.plan = Some(plan);
                if let Some(order) = &mut job.order {
                    order.digest = Some(planned.digest);
                }
            }
            Err(error) => job.report.not_reached = Some(format!("{error:#}")),
        }
    }
    Ok(())
}

/// Has agents do what they said.
pub(super) fn apply(home: &Home, ui: &Ui, jobs: &mut [&mut Job]) -> Result<()> {
    let Some(client) = ask::client(home)?.filter(|_| !jobs.is_empty()) else {
        return Ok(());
    };
    let spinner = ui.spinner("restoring other nodes");
    let asked: Vec<(String, Asked)> = jobs
        .iter()
        .filter_map(|job| Some((job.report.node.clone(), job.order.clone()?)))
        .collect();
    let outcomes = at_once(asked, &home.cancel(), |(name, asked)| {
        let (client, spinner, ui) = (client.clone(), spinner.clone(), ui.clone());
        async move {
            let progress = |now: &Status| {
                spinner.set_message(format!(
                    "{name}: {} of {}, {}",
                    now.done, now.total, now.what
                ));
            };
            let outcome = asked.apply(&client, progress).await;
            match &outcome {
                Ok(outcome) => ui.note(&format!("{name}: {} deployed", outcome.deployed.len())),
                Err(error) => ui.note(&format!("{name}: {error:#}")),
            }
            outcome
        }
    });
    spinner.finish_and_clear();
    let outcomes = match outcomes {
        Ok(outcomes) => outcomes,
        Err(error) => {
            let why = format!("{error:#}: what it has begun goes on there by itself");
            for job in jobs {
                job.report.error = Some(why.clone());
            }
            return Ok(());
        }
    };
    for (job, outcome) in jobs.iter_mut().zip(outcomes) {
        match outcome {
            Ok(outcome) => job.report.outcome = outcome,
            Err(error) => job.report.error = Some(format!("{error:#}")),
        }
    }
    Ok(())
}

/// Does the work for all, some at a time; what came of each, in their order.
fn at_once<A, T, F>(all: Vec<A>, cancel: &Cancel, work: impl Fn(A) -> F) -> Result<Vec<Result<T>>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let runtime = ask::runtime()?;
    let count = all.len();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let done = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (index, one) in all.into_iter().enumerate() {
            let (room, work) = (Arc::clone(&room), work(one));
            tasks.spawn(async move {
                let _permit = room.acquire().await;
                (index, work.await)
            });
        }
        let mut results: Vec<Option<Result<T>>> = (0..count).map(|_| None).collect();
        loop {
            match tokio::time::timeout(TICK, tasks.join_next()).await {
                Ok(None) => break,
                Ok(Some(joined)) => {
                    let (index, result) = joined?;
                    results[index] = Some(result);
                }
                Err(_) => {}
            }
            if cancel.is_set() {
                bail!("stopped by a signal");
            }
        }
        let none = || Err(anyhow!("it was not asked"));
        Ok(results
            .into_iter()
            .map(|result| result.unwrap_or_else(none))
            .collect())
    });
    runtime.shutdown_background();
    done
}
