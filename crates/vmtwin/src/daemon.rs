//! `vmtwin serve`: what a host does by itself. It follows its schedules, and on a node of a cluster
//! its agent answers the others.
//!
//! An agent that cannot begin ends the whole, since somebody just asked for it; one that ends later
//! does not take the schedules with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, anyhow};

use crate::backup::Cx;
use crate::cluster::agent;
use crate::cluster::cli::ServeArgs;
use crate::timer;

/// Serves until a signal ends it.
pub(crate) fn serve(cx: &Cx<'_>, args: &ServeArgs) -> Result<()> {
    if !agent::is_wanted(cx.home)? {
        cx.ui.note(
            "following the schedules of this host; it has no certificate of a cluster (vmtwin \
             cluster join TOKEN), so that no agent answers",
        );
        return timer::follow(cx, &|| false);
    }
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let ended = agent::serve(cx.home, cx.ui, cx.cancel, args, &begun);
            if let Err(error) = &ended
                && begun.load(Ordering::Relaxed)
            {
                let text = "the agent has ended, schedules are followed all the same";
                cx.ui.note(&format!("error: {text}: {error:#}"));
            }
            ended
        });
        let failed = || agent.is_finished() && !begun.load(Ordering::Relaxed);
        timer::follow(cx, &failed)?;
        agent.join().map_err(|_| anyhow!("the agent panicked"))?
    })
}
