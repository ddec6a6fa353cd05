//! The guest agent of a guest: freezing and thawing its file systems.
//!
//! Protocol: QEMU Guest Agent Protocol Reference. An agent is behind a socket of QEMU's, or behind
//! libvirt, which holds that socket; then its address is that of the guest's monitor, and the relay
//! there takes [`RELAYED`] for it.
//!
//! A frozen guest waits with every write. So nothing is believed: whether it was frozen at the point is
//! asked after it, and thawing is tried until the agent says that it is done.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::qmp::{Qmp, relay};

/// The command by which a relay is asked to ask the agent: `{"command": "…", "timeout_s": 5}`.
pub const RELAYED: &str = "vmtwin-agent";
/// For what takes no time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long thawing is tried.
const THAW_FOR: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);
/// Most bytes that are read for an answer: the agent may first finish what it was telling others.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Sent before a request it ends what the agent's parser holds; sent back it begins the answer.
pub(crate) const SENTINEL: u8 = 0xff;

/// Whether an agent answers that can freeze file systems, and why not.
///
/// # Errors
/// Nobody answers in time, or it cannot.
pub fn can_freeze(agent: &Path) -> io::Result<()> {
    match status(agent)?.as_str() {
        "thawed" => Ok(()),
        "frozen" => Err(io::Error::other(
            "somebody else has frozen its file systems",
        )),
        other => Err(io::Error::other(format!("its file systems are {other}"))),
    }
}

/// Freezes all file systems within `limit`; gives how many. Whatever it says, they may be frozen.
///
/// # Errors
/// The agent refused, or did not answer in time.
pub fn freeze(agent: &Path, limit: Duration) -> io::Result<u64> {
    let frozen = ask(agent, "guest-fsfreeze-freeze", limit)?;
    match frozen.as_u64() {
        Some(0) => Err(io::Error::other("it froze no file system")),
        Some(count) => Ok(count),
        None => Err(io::Error::other("it does not say what it froze")),
    }
}

/// Whether file systems are still frozen: some systems thaw by themselves after a while.
///
/// # Errors
/// Nobody answers in time.
pub fn is_frozen(agent: &Path) -> io::Result<bool> {
    Ok(status(agent)? == "frozen")
}

fn status(agent: &Path) -> io::Result<String> {
    let status = ask(agent, "guest-fsfreeze-status", TIMEOUT)?;
    let status = status.as_str().map(str::to_owned);
    status.ok_or_else(|| io::Error::other("it does not say how its file systems are"))
}

/// Thaws, until the agent says that it is done. May be repeated. Ends early when `alive` says that the
/// guest is gone.
///
/// # Errors
/// The last one, after a minute.
pub(crate) fn thaw(agent: &Path, alive: impl Fn() -> bool) -> io::Result<()> {
    let end = Instant::now() + THAW_FOR;
    loop {
        match ask(agent, "guest-fsfreeze-thaw", TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(_) if !alive() => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

fn ask(agent: &Path, command: &str, timeout: Duration) -> io::Result<Value> {
    if relay::is_address(agent) {
        return ask_relayed(agent, command, timeout);
    }
    let mut stream = synchronized(agent, TIMEOUT.min(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    writeln!(stream, "{}", json!({ "execute": command }))?;
    let mut line = String::new();
    let mut answers = BufReader::new((&stream).take(MAX_ANSWER_BYTES));
    answers.read_line(&mut line)?;
    returned(&serde_json::from_str(&line)?)
}

/// Asks the agent that a relay reaches.
pub(crate) fn ask_relayed(monitor: &Path, command: &str, timeout: Duration) -> io::Result<Value> {
    let mut qmp = Qmp::connect(monitor, TIMEOUT).map_err(io::Error::other)?;
    let text = json!({ "execute": command }).to_string();
    let arguments = json!({"command": text, "timeout_s": timeout.as_secs().max(1)});
    let answer = qmp.execute(RELAYED, arguments).map_err(io::Error::other)?;
    let answer = answer.as_str().unwrap_or_default();
    returned(&serde_json::from_str(answer)?)
}

fn returned(answer: &Value) -> io::Result<Value> {
    match (answer.get("return"), answer["error"]["desc"].as_str()) {
        (Some(value), _) => Ok(value.clone()),
        (None, Some(desc)) => Err(io::Error::other(desc.to_owned())),
        (None, None) => Err(io::Error::other("the agent's answer is none")),
    }
}

/// A connection to an agent that has answered in step.
pub(crate) fn synchronized(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
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
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// An agent that loses every third answer; gives what it was told.
    fn forgetful(dir: &Path) -> (PathBuf, Arc<Mutex<Vec<String>>>) {
        let path = dir.join("qga");
        let listener = UnixListener::bind(&path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (log, state) = (Arc::clone(&told), Mutex::new("thawed"));
        let count = AtomicUsize::new(0);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                    let text: Vec<u8> = line.drain(..).filter(|b| *b != SENTINEL).collect();
                    let asked: Value = serde_json::from_slice(&text).unwrap();
                    let name = asked["execute"].as_str().unwrap().to_owned();
                    let answer = match name.as_str() {
                        "guest-sync-delimited" => {
                            let id = &asked["arguments"]["id"];
                            let mut answer = vec![SENTINEL];
                            answer.extend(format!("{}\n", json!({ "return": id })).bytes());
                            let _ = stream.write_all(&answer);
                            continue;
                        }
                        "guest-fsfreeze-freeze" => {
                            *state.lock().unwrap() = "frozen";
                            json!(2)
                        }
                        "guest-fsfreeze-thaw" => {
                            *state.lock().unwrap() = "thawed";
                            json!(2)
                        }
                        _ => json!(*state.lock().unwrap()),
                    };
                    log.lock().unwrap().push(name);
                    if count.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
                        break;
                    }
                    let _ = writeln!(stream, "{}", json!({ "return": answer }));
                }
            }
        });
        (path, told)
    }

    #[test]
    fn thawing_is_tried_until_it_is_said_to_be_done() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, told) = forgetful(dir.path());
        can_freeze(&agent).unwrap();
        assert_eq!(freeze(&agent, TIMEOUT).unwrap(), 2);
        // Its answer is lost.
        thaw(&agent, || true).unwrap();
        assert!(!is_frozen(&agent).unwrap_or(true));
        let told = told.lock().unwrap();
        let thaws = told.iter().filter(|name| *name == "guest-fsfreeze-thaw");
        assert_eq!(thaws.count(), 2, "{told:?}");
    }

    #[test]
    fn nobody_is_an_error_and_a_guest_that_is_gone_is_none() {
        let nobody = Path::new("/nowhere/qga");
        assert!(can_freeze(nobody).is_err());
        assert!(freeze(nobody, TIMEOUT).is_err());
        thaw(nobody, || false).unwrap();
    }
}
