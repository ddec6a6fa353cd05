//! Delivery of what waits in the catalog, by a thread of its own: nothing else waits for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use time::{Duration, OffsetDateTime};
use vmtwin_catalog::{MessageOutcome, NotifyTarget, OutboxMessage};

use super::message::to_deliver;
use super::spec::Spec;
use crate::backup::Cx;
use crate::{failpoint, timer};

/// How often it looks.
const REST: std::time::Duration = std::time::Duration::from_secs(2);
const POLL: std::time::Duration = std::time::Duration::from_millis(200);
/// How often what is old is cleared.
const CLEAR: std::time::Duration = std::time::Duration::from_secs(3600);
/// Messages that are claimed at once.
const MAX_CLAIMED: usize = 64;
/// The first pause after a failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::seconds(5);
const LONGEST_PAUSE: Duration = Duration::hours(1);
/// After this time a message is given up.
const PATIENCE: Duration = Duration::days(1);
/// How long delivered messages are remembered.
const MEMORY: Duration = Duration::days(30);
/// Longest note.
const MAX_NOTE_CHARS: usize = 500;

/// Delivers until it is told to end.
pub(crate) fn follow(cx: &Cx<'_>, over: &AtomicBool) {
    let (mut looked, mut cleared): (Option<Instant>, Option<Instant>) = (None, None);
    let is_over = |at: Option<Instant>, rest| at.is_none_or(|at| at.elapsed() >= rest);
    while !over.load(Ordering::Relaxed) && !cx.cancel.is_set() {
        if !is_over(looked, REST) {
            thread::sleep(POLL);
            continue;
        }
        looked = Some(Instant::now());
        let mut done = Ok(());
        if is_over(cleared, CLEAR) {
            cleared = looked;
            done = clear(cx);
        }
        if let Err(error) = done.and_then(|()| deliver_due(cx).map(|_| ())) {
            cx.ui
                .note(&format!("warning: messages cannot be delivered: {error:#}"));
        }
    }
}

fn clear(cx: &Cx<'_>) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    cx.db.run(async |c| {
        // Twice as patient as who delivers them, since that notes why.
        c.give_up_messages(now - PATIENCE - PATIENCE).await?;
        c.forget_messages(now - MEMORY).await
    })?;
    Ok(())
}

/// Makes an attempt of each message that is due. Returns how many were taken.
pub(crate) fn deliver_due(cx: &Cx<'_>) -> Result<usize> {
    let host = timer::host()?;
    let now = OffsetDateTime::now_utc();
    let claimed = cx
        .db
        .run(async |c| c.claim_messages(&host, now, MAX_CLAIMED).await)?;
    if claimed.is_empty() {
        return Ok(0);
    }
    failpoint::pass("notify")?;
    let mut by_target: BTreeMap<String, Vec<(NotifyTarget, OutboxMessage)>> = BTreeMap::new();
    for (target, message) in claimed {
        let queue = by_target.entry(target.id.to_string()).or_default();
        queue.push((target, message));
    }
    // One that does not answer holds up nobody else.
    let taken = thread::scope(|scope| {
        let lanes: Vec<_> = (by_target.into_values())
            .map(|queue| scope.spawn(|| deliver_to_one(cx, &host, queue)))
            .collect();
        let taken = lanes.into_iter().map(|lane| lane.join().unwrap_or(Ok(0)));
        taken.collect::<Result<Vec<usize>>>()
    })?;
    Ok(taken.into_iter().sum())
}

fn deliver_to_one(
    cx: &Cx<'_>,
    host: &str,
    queue: Vec<(NotifyTarget, OutboxMessage)>,
) -> Result<usize> {
    let (mut taken, mut broken): (usize, Option<String>) = (0, None);
    for (target, message) in queue {
        let outcome = match &broken {
            Some(why) => Err(why.clone()),
            None => attempt(host, &target, &message).map_err(|error| format!("{error:#}")),
        };
        match outcome {
            Ok(()) => {
                let outcome = MessageOutcome::Delivered;
                let id = &message.id;
                cx.db
                    .run(async |c| c.end_message(id, outcome, None).await)?;
                taken += 1;
            }
            Err(why) => {
                put_back(cx, &target, &message, &why)?;
                broken = Some(why);
            }
        }
    }
    Ok(taken)
}

fn attempt(host: &str, target: &NotifyTarget, message: &OutboxMessage) -> Result<()> {
    let spec = Spec::of(target)?;
    spec.target.deliver(&to_deliver(host, message))?;
    Ok(())
}

/// For another attempt later, unless it was tried for long enough.
fn put_back(cx: &Cx<'_>, target: &NotifyTarget, message: &OutboxMessage, why: &str) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let (name, id) = (&target.name, &message.id);
    let why: String = why.chars().take(MAX_NOTE_CHARS).collect();
    if now - message.created_at >= PATIENCE {
        cx.ui
            .note(&format!("warning: {name}: a message is given up: {why}"));
        let outcome = MessageOutcome::GivenUp;
        cx.db
            .run(async |c| c.end_message(id, outcome, Some(&why)).await)?;
        return Ok(());
    }
    if message.attempts == 1 {
        cx.ui.note(&format!(
            "warning: {name}: a message is not delivered yet: {why}"
        ));
    }
    let due = now + pause(message.attempts);
    cx.db
        .run(async |c| c.put_message_back(id, due, &why).await)?;
    Ok(())
}

/// The pause after so many attempts.
fn pause(attempts: u64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1).min(16)).unwrap_or(16);
    (FIRST_PAUSE * 2i32.pow(doublings)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour() {
        let seconds = |attempts| pause(attempts).whole_seconds();
        assert_eq!([0, 1, 2, 3].map(seconds), [5, 5, 10, 20]);
        assert_eq!([11, 100, u64::MAX].map(seconds), [3600; 3]);
    }
}
