//! The end of a twin by its own operating system: the power button, again after a while, and what
//! QEMU reports of it.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::{Twin, TwinError};
use crate::qmp::Event;

/// How often events are looked at.
const POLL: Duration = Duration::from_millis(20);

/// How a twin is ended.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownOptions {
    /// How long it runs before the button is pressed.
    pub wait: Duration,
    /// After which time the button is pressed again, and then each time as long again.
    pub again: Duration,
    /// Longest time from the first press to the end.
    pub deadline: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> Self {
        ShutdownOptions {
            wait: Duration::ZERO,
            again: Duration::from_secs(15),
            deadline: Duration::from_secs(300),
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ShutdownReport {
    /// From the resume to the end, seconds.
    pub seconds: f64,
    /// How often the button was pressed.
    pub presses: u32,
}

/// Presses the button until the twin ends.
pub(super) fn run(
    twin: &mut Twin,
    options: &ShutdownOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<ShutdownReport, TwinError> {
    let begun = Instant::now();
    let mut presses = 0;
    loop {
        let events = twin.qmp.take_events();
        for event in events.map_err(|error| twin.explain(error))? {
            if let Some(outcome) = judge(&event) {
                outcome?;
                let seconds = begun.elapsed().as_secs_f64();
                return Ok(ShutdownReport { seconds, presses });
            }
        }
        if cancelled() {
            return Err(TwinError::Cancelled);
        }
        if begun.elapsed() > options.wait + options.deadline {
            return Err(TwinError::NotInTime {
                seconds: options.deadline.as_secs(),
            });
        }
        if begun.elapsed() >= options.wait + options.again * presses {
            twin.execute("system_powerdown", Value::Null)?;
            presses += 1;
        }
        std::thread::sleep(POLL);
    }
}

/// What an event says of the end: nothing, that it is the one that was wanted, or another one.
fn judge(event: &Event) -> Option<Result<(), TwinError>> {
    let text = |key: &str| event.data[key].as_str().unwrap_or("unknown").to_owned();
    match event.name.as_str() {
        "SHUTDOWN" => Some(match event.data["reason"].as_str() {
            Some("guest-shutdown") => Ok(()),
            Some("guest-reset" | "subsystem-reset") => Err(TwinError::Restarted),
            Some("guest-panic") => Err(TwinError::Panicked),
            _ => Err(TwinError::Stopped {
                reason: text("reason"),
            }),
        }),
        "GUEST_PANICKED" | "GUEST_CRASHLOADED" => Some(Err(TwinError::Panicked)),
        "RESET" => Some(Err(TwinError::Restarted)),
        "SUSPEND" => Some(Err(TwinError::Asleep)),
        "WATCHDOG" => Some(Err(TwinError::Stopped {
            reason: "its watchdog fired".into(),
        })),
        "BLOCK_IO_ERROR" => Some(Err(TwinError::Disk {
            device: text("device"),
            operation: text("operation"),
            reason: text("reason"),
        })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(name: &str, data: Value) -> Option<Result<(), TwinError>> {
        judge(&Event {
            name: name.into(),
            data,
            time_us: 0,
        })
    }

    #[test]
    fn only_the_guests_own_power_off_is_good() {
        let good = json!({"guest": true, "reason": "guest-shutdown"});
        assert!(matches!(judged("SHUTDOWN", good), Some(Ok(()))));
        for reason in [
            "guest-reset",
            "guest-panic",
            "host-qmp-quit",
            "host-signal",
            "new",
        ] {
            let data = json!({"guest": true, "reason": reason});
            assert!(matches!(judged("SHUTDOWN", data), Some(Err(_))), "{reason}");
        }
        for name in ["GUEST_PANICKED", "RESET", "SUSPEND", "BLOCK_IO_ERROR"] {
            assert!(matches!(judged(name, json!({})), Some(Err(_))), "{name}");
        }
        for name in ["POWERDOWN", "RESUME", "STOP", "RTC_CHANGE"] {
            assert!(judged(name, json!({})).is_none(), "{name}");
        }
    }
}
