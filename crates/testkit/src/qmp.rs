//! A small blocking QMP client, for a test to watch a guest with.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// An event, as QEMU told it.
#[derive(Debug, Clone)]
pub struct QmpEvent {
    /// Its name, such as `STOP`.
    pub name: String,
    /// Its `data`; null if it has none.
    pub data: Value,
    /// QEMU's own timestamp, in microseconds since 1970.
    pub time_us: u64,
    /// When it arrived here.
    pub arrived: Instant,
}

/// A connection to a QMP socket.
#[derive(Debug)]
pub struct Qmp {
    stream: Mutex<Connection>,
    events: Arc<Mutex<Vec<QmpEvent>>>,
}

#[derive(Debug)]
struct Connection {
    writer: UnixStream,
    answers: Receiver<Value>,
    next_id: u64,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let writer = UnixStream::connect(socket).context("connecting to QMP")?;
        let reader = BufReader::new(writer.try_clone()?);
        let (sender, answers) = channel();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let Ok(message) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                match parse_event(&message) {
                    Some(event) => heard.lock().unwrap().push(event),
                    None if message.get("QMP").is_some() => {}
                    None if sender.send(message).is_err() => break,
                    None => {}
                }
            }
        });
        let qmp = Qmp {
            stream: Mutex::new(Connection {
                writer,
                answers,
                next_id: 1,
            }),
            events,
        };
        qmp.try_execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its `return`; panics on an error.
    pub fn execute(&self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs a command; QEMU's error is the error's text.
    pub fn try_execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut stream = self.stream.lock().unwrap();
        let id = stream.next_id;
        stream.next_id += 1;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        stream
            .writer
            .write_all(format!("{request}\n").as_bytes())
            .context("writing to QMP")?;
        let answer = stream
            .wait_for_answer(id)
            .with_context(|| format!("QMP command {command}"))?;
        if let Some(error) = answer.get("error") {
            bail!(
                "{command}: {}",
                error["desc"].as_str().unwrap_or("unknown error")
            );
        }
        Ok(answer["return"].clone())
    }

    /// All events until now.
    pub fn events(&self) -> Vec<QmpEvent> {
        self.events.lock().unwrap().clone()
    }

    /// The events of one name that arrived since.
    pub fn events_named(&self, name: &str, since: Instant) -> Vec<QmpEvent> {
        let mut events = self.events();
        events.retain(|event| event.name == name && event.arrived >= since);
        events
    }

    /// Waits for an event that arrives after `since`.
    pub fn wait_for_event(&self, name: &str, since: Instant, timeout: Duration) -> QmpEvent {
        let end = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events_named(name, since).into_iter().next() {
                return event;
            }
            assert!(
                Instant::now() < end,
                "no event {name} in {timeout:?}: {:#?}",
                self.events()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Milliseconds from each `STOP` to the `RESUME` after it, by QEMU's own clock.
    pub fn pauses_ms(&self, since: Instant) -> Vec<f64> {
        let mut stopped = None;
        let mut pauses = Vec::new();
        for event in self.events().iter().filter(|event| event.arrived >= since) {
            match (event.name.as_str(), stopped) {
                ("STOP", _) => stopped = Some(event.time_us),
                ("RESUME", Some(at)) => {
                    pauses.push(event.time_us.saturating_sub(at) as f64 / 1e3);
                    stopped = None;
                }
                _ => {}
            }
        }
        pauses
    }

    /// What `query-status` says, such as `running`.
    pub fn status(&self) -> String {
        let status = self.execute("query-status", json!({}));
        status["status"].as_str().unwrap_or("unknown").to_owned()
    }
}

impl Connection {
    /// An answer that came too late for an earlier command is passed over.
    fn wait_for_answer(&self, id: u64) -> Result<Value> {
        loop {
            let answer = self
                .answers
                .recv_timeout(ANSWER_TIMEOUT)
                .context("no answer")?;
            if answer["id"] == id {
                return Ok(answer);
            }
        }
    }
}

fn parse_event(message: &Value) -> Option<QmpEvent> {
    let stamp = |part: &str| message["timestamp"][part].as_u64().unwrap_or(0);
    Some(QmpEvent {
        name: message.get("event")?.as_str()?.to_owned(),
        data: message["data"].clone(),
        time_us: stamp("seconds") * 1_000_000 + stamp("microseconds"),
        arrived: Instant::now(),
    })
}
