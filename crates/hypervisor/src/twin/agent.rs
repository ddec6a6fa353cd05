//! The guest agent of a twin, where its system happens to run one: a further way to shut it down, and
//! a sign that it lives.
//!
//! Protocol: QEMU Guest Agent Protocol Reference. Nothing it says is relied on: it is asked, and
//! QEMU tells how the twin ends.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::agent::{ask_relayed, synchronized};

/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the agent behind `socket` to power the machine off. An error says that nobody answered.
pub(super) fn ask_to_power_off(socket: &Path) -> io::Result<()> {
    let mut stream = synchronized(socket, TIMEOUT)?;
    // A good end has no answer.
    let shutdown = json!({"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}});
    writeln!(stream, "{shutdown}")
}

/// Asks the agent behind a relay's monitor. A good end has no answer, so that nothing tells it from
/// one that is not there.
pub(super) fn ask_relay_to_power_off(monitor: &Path) -> bool {
    let Err(error) = ask_relayed(monitor, "guest-shutdown", TIMEOUT) else {
        return true;
    };
    tracing::debug!(%error, "asked a twin's agent to power off");
    false
}

/// Whether an agent answers.
pub(super) fn answers(socket: &Path) -> bool {
    synchronized(socket, TIMEOUT).is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::Value;

    use super::*;
    use crate::agent::SENTINEL;

    /// An agent that says `answer`, and what it was asked after.
    fn asked(answer: &'static str) -> (io::Result<()>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut sync, mut rest) = (Vec::new(), String::new());
            lines.read_until(b'\n', &mut sync).unwrap();
            assert_eq!(sync[0], SENTINEL);
            let sync: Value = serde_json::from_slice(&sync[1..]).unwrap();
            let answer = answer.replace("ID", &sync["arguments"]["id"].to_string());
            // What others asked before, then the answer.
            stream.write_all(b"{\"return\": 7}\n{\"ret\xff").unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = lines.read_to_string(&mut rest);
            rest
        });
        let outcome = ask_to_power_off(&path);
        (outcome, agent.join().unwrap())
    }

    #[test]
    fn an_agent_that_answers_is_told_to_power_off() {
        let (outcome, request) = asked("{\"return\": ID}\n");
        outcome.unwrap();
        assert!(request.contains("guest-shutdown") && request.contains("powerdown"));
    }

    #[test]
    fn others_are_told_nothing() {
        for answer in ["{\"return\": 1}\n", "rubbish\n", "\n", "{\"error\": {}}\n"] {
            let (outcome, request) = asked(answer);
            assert!(outcome.is_err(), "{answer}");
            assert_eq!(request, "");
        }
        assert!(ask_to_power_off(Path::new("/nowhere")).is_err());
    }
}
