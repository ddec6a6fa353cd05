//! The end of a twin by its own operating system: what the user set for it, the power button, the
//! button and the guest agent after a while, and what QEMU reports of it.

use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::console::Console;
use super::{AGENT_SOCKET, CONSOLE_SOCKET, Twin, TwinError, agent};
use crate::qmp::Event;

/// How often events are looked at.
const POLL: Duration = Duration::from_millis(20);
/// Most keys of a chord.
const MAX_CHORD: usize = 8;

/// How a twin is ended.
#[derive(Debug, Clone)]
pub struct ShutdownOptions {
    /// How long it runs before anything is done.
    pub wait: Duration,
    /// Keys that are pressed then, one chord after the other.
    pub keys: Vec<Chord>,
    /// A line that is typed on its first console then.
    pub console: Option<String>,
    /// After which time the button is pressed again, and then each time as long again. The guest
    /// agent is asked too then, if there is one.
    pub again: Duration,
    /// Longest time from the first press to the end.
    pub deadline: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> Self {
        ShutdownOptions {
            wait: Duration::ZERO,
            keys: Vec::new(),
            console: None,
            again: Duration::from_secs(15),
            deadline: Duration::from_secs(300),
        }
    }
}

/// Keys that are pressed together, by QEMU's names (`QKeyCode`): `ctrl-alt-delete`, `ret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chord(Vec<String>);

impl FromStr for Chord {
    type Err = String;

    fn from_str(text: &str) -> Result<Chord, String> {
        let keys: Vec<String> = text.split('-').map(str::to_owned).collect();
        let named = |key: &String| {
            (1..=32).contains(&key.len())
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        match keys.len() <= MAX_CHORD && keys.iter().all(named) {
            true => Ok(Chord(keys)),
            false => Err(format!(
                "'{text}' names no keys; join QEMU's names of keys by '-', such as ctrl-alt-delete"
            )),
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
    /// Whether a guest agent was asked, and took it.
    pub agent: bool,
}

/// Presses the button until the twin ends.
pub(super) fn run(
    twin: &mut Twin,
    options: &ShutdownOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<ShutdownReport, TwinError> {
    let begun = Instant::now();
    let mut console = None;
    let (mut presses, mut agent) = (0, false);
    loop {
        let events = twin.qmp.take_events();
        for event in events.map_err(|error| twin.explain(error))? {
            if let Some(outcome) = judge(&event) {
                outcome?;
                return Ok(ShutdownReport {
                    seconds: begun.elapsed().as_secs_f64(),
                    presses,
                    agent,
                });
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
            if presses == 0 {
                console = first(twin, options)?;
            } else if !agent {
                agent = match twin.qmp.is_relayed() {
                    true => agent::ask_relay_to_power_off(twin.qmp.path()),
                    false => agent::ask_to_power_off(&twin.dir.join(AGENT_SOCKET)).is_ok(),
                };
            }
            twin.execute("system_powerdown", Value::Null)?;
            presses += 1;
        }
        console.iter_mut().for_each(Console::drain);
        std::thread::sleep(POLL);
    }
}

/// What is done before the button is pressed for the first time.
fn first(twin: &mut Twin, options: &ShutdownOptions) -> Result<Option<Console>, TwinError> {
    for Chord(keys) in &options.keys {
        let keys: Vec<Value> = (keys.iter())
            .map(|key| json!({"type": "qcode", "data": key}))
            .collect();
        twin.execute("send-key", json!({"keys": keys}))?;
    }
    let console = (options.console.as_deref())
        .map(|line| Console::type_line(&twin.dir.join(CONSOLE_SOCKET), line));
    console.transpose().map_err(|error| TwinError::NoConsole {
        reason: error.to_string(),
    })
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
    fn chords_are_keys_joined_by_dashes() {
        let chord = |text: &str| text.parse::<Chord>();
        assert_eq!(chord("ret").unwrap(), Chord(vec!["ret".into()]));
        assert_eq!(chord("ctrl-alt-f2").unwrap().0, ["ctrl", "alt", "f2"]);
        for text in ["", "-", "ctrl-", "ctrl alt", "a-b-c-d-e-f-g-h-i", "a\"b"] {
            assert!(chord(text).is_err(), "{text}");
        }
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
