//! Events: what QEMU says on its monitor, and what becomes of domains.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use crate::error::Error;
use crate::ffi::Handle;

/// Most events kept when nobody takes them; newer ones are dropped, since libvirt's event loop
/// must not wait.
const MAX_EVENTS: usize = 4096;

/// An event of QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorEvent {
    /// `STOP`, `RESUME`, `MIGRATION`…
    pub name: String,
    /// QEMU's time stamp, microseconds since the epoch.
    pub time_us: u64,
    /// Its data as JSON; empty without any.
    pub data: String,
}

/// Something that happened to a domain: `virDomainEventType` and its detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    /// The domain's name.
    pub domain: String,
    /// 0 defined, 1 undefined, 2 started, 3 suspended, 4 resumed, 5 stopped, 6 shut down, 8 crashed.
    pub event: i32,
    /// `virDomainEvent…DetailType`.
    pub detail: i32,
}

/// Events that are followed until this value goes.
#[derive(Debug)]
pub struct Subscription<T> {
    events: Receiver<T>,
    connection: Arc<Handle>,
    id: i32,
    forget: fn(&Handle, i32),
}

impl<T> Subscription<T> {
    /// The next event, waited for `timeout` at most.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<T> {
        self.events.recv_timeout(timeout).ok()
    }
}

impl Subscription<MonitorEvent> {
    pub(crate) fn monitor(
        connection: &Arc<Handle>,
        domain: &Handle,
        event: Option<&str>,
    ) -> Result<Self, Error> {
        let (sender, events) = sync_channel(MAX_EVENTS);
        let handler = move |name: &str, seconds: i64, micros: u32, data: &str| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            let _ = sender.try_send(MonitorEvent {
                name: name.to_owned(),
                time_us: seconds.saturating_mul(1_000_000) + u64::from(micros),
                data: data.to_owned(),
            });
        };
        let id = connection.on_monitor_event(domain, event, Box::new(handler))?;
        Ok(Subscription {
            events,
            connection: Arc::clone(connection),
            id,
            forget: Handle::forget_monitor_events,
        })
    }
}

impl Subscription<Lifecycle> {
    pub(crate) fn lifecycle(connection: &Arc<Handle>) -> Result<Self, Error> {
        let (sender, events) = sync_channel(MAX_EVENTS);
        let handler = move |domain: &str, event, detail| {
            let _ = sender.try_send(Lifecycle {
                domain: domain.to_owned(),
                event,
                detail,
            });
        };
        let id = connection.on_lifecycle(Box::new(handler))?;
        Ok(Subscription {
            events,
            connection: Arc::clone(connection),
            id,
            forget: Handle::forget_lifecycle,
        })
    }
}

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        (self.forget)(&self.connection, self.id);
    }
}
