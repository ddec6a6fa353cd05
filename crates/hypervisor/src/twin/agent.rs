//! The guest agent of a twin, where its system happens to run one: a further way to shut it down, and
//! a sign that it lives.
//!
//! Protocol: QEMU Guest Agent Protocol Reference. Nothing it says is relied on: it is asked, and
//! QEMU tells how the twin ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes that are read for an answer: the agent may first finish what it was telling others.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Sent before a request it ends what the agent's parser holds; sent back it begins the answer.
const SENTINEL: u8 = 0xff;

/// Asks the agent behind `socket` to power the machine off. An error says that nobody answered.
pub(super) fn ask_to_power_off(socket: &Path) -> io::Result<()> {
    let mut stream = synchronized(socket)?;
    // A good end has no answer.
    let shutdown = json!({"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}});
    writeln!(stream, "{shutdown}")
}

/// Whether an agent answers.
pub(super) fn answers(socket: &Path) -> bool {
    synchronized(socket).is_ok()
}

/// A connection to an agent that has answered in step.
fn synchronized(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let id = u64::from(std::process::id());
    let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
    stream.write_all(&[SENTINEL])?;
    writeln!(stream, "{sync}")?;
    let mut answers = BufReader::new((&stream).take(MAX_ANSWER_BYTES));
    answers.skip_until(SENTINEL)?;
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line)?;
    match answer["return"] == id {
        true => Ok(stream),
        false => Err(io::Error::other("the agent does not answer in step")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

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
