//! Messages: a document in the catalog, and the text, subject and variables that are made of it.
//!
//! The document (version 1): `{format, version, id, host, time, summary, schedule, by, due_at, events,
//! more}`; an event is `{kind, what, outcome, since, again, note}`. Times are RFC 3339, UTC. `more`
//! counts events that are left out.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vmtwin_catalog::{OutboxMessage, RunOutcome};
use vmtwin_notify::Message;

use super::decide::Occasion;
use super::spec::Kind;

/// Most events of one message.
const MAX_EVENTS: usize = 200;
/// Longest note in it.
const MAX_NOTE_CHARS: usize = 500;
/// Most names in a summary or a variable.
const MAX_NAMES: usize = 100;
/// Up to so many names a summary names them.
const NAMED: usize = 3;

/// Something that is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) what: String,
    pub(super) outcome: RunOutcome,
    /// Since when it fails, or failed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) since: Option<OffsetDateTime>,
    /// It was told before.
    pub(super) again: bool,
    pub(super) note: Option<String>,
}

/// The document of a message.
pub(super) fn document(occasion: &Occasion, events: &[&Event]) -> Value {
    let kept: Vec<Event> = events.iter().take(MAX_EVENTS).map(|e| short(e)).collect();
    json!({
        "format": "vmtwin-notification",
        "version": 1,
        "host": occasion.host,
        "time": rfc3339(occasion.now),
        "summary": summary(&occasion.host, events),
        "schedule": occasion.schedule,
        "by": occasion.by,
        "due_at": occasion.due_at.map(rfc3339),
        "events": kept,
        "more": events.len() - kept.len(),
    })
}

fn short(event: &Event) -> Event {
    let note = event.note.as_ref();
    Event {
        note: note.map(|text| text.chars().take(MAX_NOTE_CHARS).collect()),
        ..event.clone()
    }
}

/// `vmtwin on host1: web01 failed, 4 well again`.
fn summary(host: &str, events: &[&Event]) -> String {
    let words = [
        (Kind::Failure, "failed"),
        (Kind::Missed, "missed"),
        (Kind::Recovery, "well again"),
    ];
    let part = |(kind, word): &(Kind, &str)| {
        let of_kind = events.iter().filter(|event| event.kind == *kind);
        let names: Vec<&str> = of_kind.map(|event| event.what.as_str()).collect();
        match names.len() {
            0 => None,
            count if count <= NAMED => Some(format!("{} {word}", names.join(", "))),
            count => Some(format!("{count} {word}")),
        }
    };
    let parts: Vec<String> = words.iter().filter_map(part).collect();
    format!("vmtwin on {host}: {}", parts.join("; "))
}

/// What is sent to see whether it arrives.
pub(crate) fn test_message(host: &str, name: &str) -> Value {
    json!({
        "format": "vmtwin-notification",
        "version": 1,
        "host": host,
        "time": rfc3339(OffsetDateTime::now_utc()),
        "summary": format!("vmtwin on {host}: test of the notification {name}"),
        "schedule": null,
        "by": "vmtwin notify test",
        "due_at": null,
        "events": [],
        "more": 0,
        "test": true,
    })
}

/// What a message of the catalog is for those who read it.
pub(crate) fn to_deliver(host: &str, message: &OutboxMessage) -> Message {
    let mut document = message.document.clone();
    if let Value::Object(fields) = &mut document {
        fields.insert("id".to_owned(), json!(message.id));
    }
    let events: Vec<Event> = serde_json::from_value(document["events"].clone()).unwrap_or_default();
    let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    Message {
        id: message.id.to_string(),
        host: host.to_owned(),
        subject: word("summary"),
        text: text(&document, &events),
        variables: variables(&document, &events),
        document: document.to_string(),
    }
}

fn text(document: &Value, events: &[Event]) -> String {
    let word = |key: &str| document[key].as_str();
    let mut lines = vec![
        word("summary").unwrap_or_default().to_owned(),
        String::new(),
    ];
    match (word("schedule"), word("due_at"), word("by")) {
        (Some(name), Some(due), _) => lines.push(format!("Schedule {name}, due {due}:")),
        (_, _, Some(by)) => lines.push(format!("Started by {by}:")),
        _ => {}
    }
    lines.extend(events.iter().map(line));
    if let Some(more @ 1..) = document["more"].as_u64() {
        lines.push(format!("  and {more} more"));
    }
    if let Some(name) = word("schedule") {
        lines.extend([String::new(), format!("See: vmtwin schedule show {name}")]);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn line(event: &Event) -> String {
    let note = event.note.as_deref().map_or(String::new(), |note| {
        // Its lines would look like ours.
        format!(
            ": {}",
            note.split_whitespace().collect::<Vec<_>>().join(" ")
        )
    });
    let since = event.since.map_or(String::new(), rfc3339);
    let what = &event.what;
    match (event.kind, event.again) {
        (Kind::Failure, false) => format!("  {what}: FAILED{note}"),
        (Kind::Failure, true) => format!("  {what}: FAILED, as since {since}{note}"),
        (Kind::Recovery, _) => format!("  {what}: well again; it had failed since {since}"),
        (Kind::Missed, _) => format!("  {what}: MISSED{note}"),
    }
}

/// The short of it, for scripts.
fn variables(document: &Value, events: &[Event]) -> Vec<(String, String)> {
    let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let names = |kind: Kind| {
        let of_kind = events.iter().filter(|event| event.kind == kind);
        let names = of_kind.map(|event| event.what.as_str()).take(MAX_NAMES);
        names.collect::<Vec<_>>().join(" ")
    };
    let worst = [Kind::Failure, Kind::Missed, Kind::Recovery]
        .into_iter()
        .find(|kind| events.iter().any(|event| event.kind == *kind));
    let pairs = [
        (
            "VMTWIN_EVENT",
            worst.map_or("test", Kind::as_str).to_owned(),
        ),
        ("VMTWIN_SUMMARY", word("summary")),
        ("VMTWIN_SCHEDULE", word("schedule")),
        ("VMTWIN_HOST", word("host")),
        ("VMTWIN_FAILED", names(Kind::Failure)),
        ("VMTWIN_MISSED", names(Kind::Missed)),
        ("VMTWIN_RECOVERED", names(Kind::Recovery)),
        ("VMTWIN_MESSAGE_ID", word("id")),
    ];
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn rfc3339(time: OffsetDateTime) -> String {
    let seconds = time.replace_nanosecond(0).unwrap_or(time);
    seconds.format(&Rfc3339).unwrap_or_default()
}
