//! The relay: QMP on a socket, by the monitor that libvirt holds (`vmtwin libvirt-monitor`).
//!
//! Commands go one after another, as libvirt passes them. When libvirtd is gone they wait until it
//! is back: all of them may be repeated, since what was done already is at most refused. A reply
//! that comes too late for the client is none, but `cont` is tried for as long as QEMU lives.
//!
//! When all clients are gone, vmtwin and its guard, a guest that was stopped through this relay
//! and not told to go on is resumed. Nothing here touches a file, a network or a catalog.
//!
//! The greeting is described in `vmtwin_hypervisor::qmp::relay`.

mod client;
mod session;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmtwin_hypervisor::agent::RELAYED;
use vmtwin_hypervisor::process::{ProcessId, user_and_group};
use vmtwin_libvirt::{Error, ErrorCode};

use client::{Client, Line, Writer};
use session::Session;

/// How long a command waits for libvirtd; less than clients wait for a reply.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long the greeting waits for it.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);
/// Nice value.
const URGENT: i32 = -20;
const POLL: Duration = Duration::from_millis(50);

/// Serves the socket that is stdin; returns the exit code.
pub(crate) fn run(uri: &str, uuid: &str) -> i32 {
    // Before its threads begin, which take it over. A relay does little, and a guest that stands
    // still waits for each of its wake-ups. Without the privilege nothing changes.
    let _ = rustix::process::setpriority_process(None, URGENT);
    let stdin = std::io::stdin();
    let Ok(client) = stdin.as_fd().try_clone_to_owned().and_then(Client::new) else {
        return 1;
    };
    let Ok(writer) = client.writer() else {
        return 1;
    };
    let mut relay = Relay {
        uri: uri.to_owned(),
        uuid: uuid.to_owned(),
        writer,
        session: None,
        process: None,
        stopped: false,
    };
    let greeting = relay.greeting();
    let usable = greeting.get("QMP").is_some();
    if relay.writer.write(&greeting).is_err() || !usable {
        return i32::from(!usable);
    }
    relay.serve(client);
    relay.resume();
    0
}

struct Relay {
    uri: String,
    uuid: String,
    writer: Writer,
    session: Option<Session>,
    /// QEMU's.
    process: Option<ProcessId>,
    /// A client stopped the guest, and nobody has told it to go on.
    stopped: bool,
}

/// A command that could not be carried out.
enum Failure {
    /// The guest does not run any more.
    Gone,
    Refused(String),
}

impl Relay {
    fn greeting(&mut self) -> Value {
        let asked = self.ask(&json!({"execute": "query-status"}), None, GREETING_PATIENCE);
        match asked {
            Ok(_) => {}
            Err(Failure::Gone) => return json!({"relay": {"gone": true}}),
            Err(Failure::Refused(reason)) => return json!({"relay": {"error": reason}}),
        }
        let name = self.session.as_ref().map(|s| s.domain.name());
        self.process = name.and_then(|name| super::process::of_domain(&name, &self.uuid));
        let Some(process) = self.process else {
            let reason = "its QEMU is not found on this host: vmtwin must run beside it, with the \
                          rights to look at it (as root)";
            return json!({"relay": {"error": reason}});
        };
        let uid = user_and_group(process.pid).map_or(0, |(uid, _)| uid);
        json!({"QMP": {}, "relay": {"pid": process.pid, "uid": uid}})
    }

    fn serve(&mut self, mut client: Client) {
        while let Some(line) = client.next() {
            match line {
                Line::Text(text) => {
                    let Ok(message) = serde_json::from_slice::<Value>(&text) else {
                        continue;
                    };
                    if self.answer(message, &mut client).is_none() {
                        return;
                    }
                }
                Line::TooLong => return,
            }
        }
    }

    /// Carries one command out; `None` where the client or the guest is gone.
    fn answer(&mut self, mut message: Value, client: &mut Client) -> Option<()> {
        let object = message.as_object_mut()?;
        let id = object.remove("id").unwrap_or(Value::Null);
        let name = object.get("execute").and_then(Value::as_str);
        let name = name.unwrap_or_default().to_owned();
        let file = match name.as_str() {
            "getfd" | "add-fd" => client.take_file(),
            _ => None,
        };
        let patience = match name.as_str() {
            "cont" => Duration::MAX,
            _ => PATIENCE,
        };
        self.stopped |= name == "stop";
        let answer = match name.as_str() {
            "qmp_capabilities" => Ok(json!({"return": {}})),
            RELAYED => self.ask_agent(&message["arguments"]),
            _ => self.ask(&message, file.as_ref(), patience),
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(Failure::Gone) => {
                self.stopped = false;
                return None;
            }
            Err(Failure::Refused(text)) => {
                json!({"error": {"class": "GenericError", "desc": text}})
            }
        };
        if name == "cont" && answer.get("return").is_some() {
            self.stopped = false;
        }
        answer["id"] = id;
        self.writer.write(&answer).ok()
    }

    /// Asks the guest's agent, whose socket libvirt holds. Not repeated: who asks does that.
    fn ask_agent(&mut self, arguments: &Value) -> Result<Value, Failure> {
        let command = arguments["command"].as_str().unwrap_or_default();
        let timeout_s = arguments["timeout_s"].as_i64().unwrap_or(5).clamp(1, 60);
        let session = match &mut self.session {
            Some(session) => Ok(session),
            none => Session::open(&self.uri, &self.uuid, &self.writer).map(|s| none.insert(s)),
        };
        let timeout_s = i32::try_from(timeout_s).unwrap_or(5);
        let asked = session.and_then(|s| s.domain.agent_command(command, timeout_s));
        if asked.as_ref().is_err_and(Error::is_disconnected) {
            self.session = None;
        }
        asked
            .map(|answer| json!({ "return": answer }))
            .map_err(|error| Failure::Refused(error.to_string()))
    }

    /// Asks QEMU, until libvirtd answers or `patience` is over.
    fn ask(
        &mut self,
        command: &Value,
        file: Option<&OwnedFd>,
        patience: Duration,
    ) -> Result<Value, Failure> {
        let begun = Instant::now();
        let text = command.to_string();
        loop {
            let error = match self.try_ask(&text, file) {
                Ok(message) => {
                    return serde_json::from_str(&message)
                        .map_err(|_| Failure::Refused("libvirt's answer is no JSON".into()));
                }
                Err(error) => error,
            };
            self.session = None;
            let known = self.process.is_some();
            let lives = self.process.is_some_and(ProcessId::is_alive);
            if known && !lives {
                return Err(Failure::Gone);
            }
            // A libvirtd that was just started knows its guests a little later.
            let passing = !known && !is_absent(&error) || lives;
            let retry = error.is_disconnected() || (passing && is_absent(&error));
            if !retry || begun.elapsed() > patience {
                return Err(match is_absent(&error) {
                    true => Failure::Gone,
                    false => Failure::Refused(error.to_string()),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    fn try_ask(&mut self, command: &str, file: Option<&OwnedFd>) -> Result<String, Error> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::open(&self.uri, &self.uuid, &self.writer)?),
        };
        let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
        Ok(session.domain.monitor_command(command, &files)?.message)
    }

    /// Resumes a guest that was left stopped.
    fn resume(&mut self) {
        while self.stopped {
            let state = self.ask(&json!({"execute": "query-status"}), None, Duration::MAX);
            match state {
                Ok(answer) if answer["return"]["status"] == "paused" => {
                    let _ = self.ask(&json!({"execute": "cont"}), None, Duration::MAX);
                    std::thread::sleep(POLL);
                }
                Ok(_) | Err(Failure::Gone) => self.stopped = false,
                Err(Failure::Refused(_)) => std::thread::sleep(POLL),
            }
        }
    }
}

/// There is no such domain, or it does not run.
fn is_absent(error: &Error) -> bool {
    error.is_missing() || error.code() == Some(ErrorCode::OPERATION_INVALID)
}
