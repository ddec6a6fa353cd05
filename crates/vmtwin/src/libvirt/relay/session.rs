//! A connection to libvirtd for one domain, and the thread that passes QEMU's events on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vmtwin_libvirt::{Connection, Domain, Error, MonitorEvent, Subscription};

use super::client::Writer;

/// How often the thread looks whether it is to end.
const POLL: Duration = Duration::from_millis(100);

/// Ends its thread when it goes.
pub(super) struct Session {
    pub(super) domain: Domain,
    over: Arc<AtomicBool>,
}

impl Session {
    pub(super) fn open(uri: &str, uuid: &str, writer: &Writer) -> Result<Session, Error> {
        let domain = Connection::open(uri)?.domain_by_uuid(uuid)?;
        let events = domain.follow_monitor(None)?;
        let over = Arc::new(AtomicBool::new(false));
        let (writer, ended) = (writer.clone(), Arc::clone(&over));
        std::thread::spawn(move || pass_on(&events, &writer, &ended));
        Ok(Session { domain, over })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn pass_on(events: &Subscription<MonitorEvent>, writer: &Writer, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Some(event) = events.next(POLL) {
            // Whether the client is gone is found out by who reads from it.
            let _ = writer.write(&as_qmp(&event));
        }
    }
}

fn as_qmp(event: &MonitorEvent) -> Value {
    let data: Value = serde_json::from_str(&event.data).unwrap_or(Value::Null);
    json!({"event": event.name, "data": data, "timestamp":
           {"seconds": event.time_us / 1_000_000, "microseconds": event.time_us % 1_000_000}})
}
