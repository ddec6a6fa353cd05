//! `vmtwin serve`: what a host does by itself and for who asks. It follows its schedules, answers the
//! API, and on a node of a cluster its agent answers the others.
//!
//! ```text
//!   this thread    schedules ─────────┐
//!   API's thread   requests ──────────┼─► tasks, each a process of its own
//!   agent's thread other nodes ─► XML of this one
//! ```
//! What cannot begin ends the whole, since somebody just asked for it; an agent that ends later does
//! not take the rest with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, anyhow};

use crate::api;
use crate::backup::Cx;
use crate::cli::ServeArgs;
use crate::cluster::agent;
use crate::task::Runner;
use crate::timer;

/// Threads that answer requests; what waits has threads of its own.
const THREADS: usize = 2;

/// Serves until a signal ends it.
pub(crate) fn serve(cx: &Cx<'_>, args: &ServeArgs) -> Result<()> {
    let runner = Runner::new(cx.home, args.jobs.into())?;
    let runner = Arc::new(runner.in_folder(api::restore_root(cx.home, args)?));
    // What an earlier one left is marked before anybody can look at it.
    runner.clean_up()?;
    let has_agent = agent::is_wanted(cx.home)?;
    if !has_agent {
        cx.ui.note(
            "following the schedules of this host; it has no certificate of a cluster (vmtwin \
             cluster join TOKEN), so that no agent answers",
        );
    }
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let agent = has_agent.then(|| scope.spawn(|| run_agent(cx, args, &begun)));
        let api = scope.spawn(|| serve_api(cx, args, &runner));
        let failed = || {
            let agent = agent.as_ref().is_some_and(|it| it.is_finished());
            api.is_finished() || agent && !begun.load(Ordering::Relaxed)
        };
        let followed = timer::follow(cx, &runner, &failed);
        if failed() || followed.is_err() {
            cx.cancel.flag().store(true, Ordering::Relaxed);
        }
        let api = api.join().map_err(|_| anyhow!("the API panicked"))?;
        let agent = agent.map(|it| it.join().map_err(|_| anyhow!("the agent panicked")));
        followed?;
        api?;
        agent.transpose()?.unwrap_or(Ok(()))
    })
}

fn run_agent(cx: &Cx<'_>, args: &ServeArgs, begun: &AtomicBool) -> Result<()> {
    let ended = agent::serve(cx.home, cx.ui, cx.cancel, args, begun);
    if let Err(error) = &ended
        && begun.load(Ordering::Relaxed)
    {
        let text = "the agent has ended, all else goes on";
        cx.ui.note(&format!("error: {text}: {error:#}"));
    }
    ended
}

/// Answers requests until the end; jobs are ended and undone before it returns.
fn serve_api(cx: &Cx<'_>, args: &ServeArgs, runner: &Arc<Runner>) -> Result<()> {
    let api = api::Api::new(cx.home, Arc::clone(runner), args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()?;
    let served = runtime.block_on(async {
        let (listener, fingerprint) = api::listen(cx.home, args).await?;
        let scheme = if fingerprint.is_some() {
            "https"
        } else {
            "http"
        };
        let address = listener.address().unwrap_or(args.listen);
        cx.ui.note(&format!(
            "the API and the pages are at {scheme}://{address}"
        ));
        if let Some(fingerprint) = fingerprint {
            cx.ui
                .note(&format!("SHA-256 of the certificate: {fingerprint}"));
        }
        let end = agent::until_cancelled(cx.cancel);
        api::serve(&api, listener, end).await;
        Ok(())
    });
    runner.end();
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    served
}
