//! Nodes with agents of their own, for tests of what they say to one another.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmtwin_server::{Credentials, Limits, Listener};

use super::{PATIENCE, Vmtwin, code, document, told};

/// A running agent. It is killed with this value.
pub(crate) struct Agent(Child);

impl Agent {
    pub(crate) fn start(vmtwin: &Vmtwin, listen: &str, more: &[(&str, &str)]) -> Agent {
        let child = vmtwin
            .command(&["serve", "--listen", "127.0.0.1:0", "--agent-listen", listen])
            .envs(more.iter().copied())
            .stderr(std::fs::File::create(vmtwin.path("agent.log")).unwrap())
            .spawn()
            .unwrap();
        let agent = Agent(child);
        let begun = Instant::now();
        while !log(vmtwin).contains("answers at") {
            assert!(begun.elapsed() < PATIENCE, "{}", log(vmtwin));
            std::thread::sleep(Duration::from_millis(50));
        }
        agent
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Ends it as a service manager does.
    pub(crate) fn end(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn log(vmtwin: &Vmtwin) -> String {
    std::fs::read_to_string(vmtwin.path("agent.log")).unwrap_or_default()
}

pub(crate) fn first_node(url: &str) -> (Vmtwin, Agent) {
    let node = Vmtwin::new();
    node.ok(&[
        "cluster",
        "create",
        "lab",
        "--database",
        url,
        "--node",
        "node1",
    ]);
    let agent = Agent::start(&node, "127.0.0.1:0", &[]);
    (node, agent)
}

/// The name of the database of a URL.
pub(crate) fn database_of(url: &str) -> &str {
    url.split('?').next().unwrap().rsplit('/').next().unwrap()
}

pub(crate) fn token(issuer: &Vmtwin, ttl: &str) -> String {
    let shown = issuer.json(&["cluster", "token", "--ttl", ttl]);
    shown["token"].as_str().unwrap().to_owned()
}

pub(crate) fn joined(issuer: &Vmtwin, name: &str) -> (Vmtwin, Agent) {
    let node = Vmtwin::new();
    node.ok(&["cluster", "join", &token(issuer, "5m"), "--node", name]);
    let agent = Agent::start(&node, "127.0.0.1:0", &[]);
    (node, agent)
}

pub(crate) fn address(asker: &Vmtwin, name: &str) -> String {
    line(asker, name)["address"].as_str().unwrap().to_owned()
}

pub(crate) fn line(asker: &Vmtwin, name: &str) -> Value {
    let nodes = asker.json(&["cluster", "nodes"]);
    let mut lines = nodes.as_array().unwrap().iter();
    lines.find(|line| line["name"] == name).unwrap().clone()
}

pub(crate) fn backup(node: &Vmtwin, more: &[&str]) -> Value {
    let output = node.run(&[&["cluster", "backup", "--json"], more].concat());
    assert!(matches!(code(&output), 0 | 3), "{}", told(&output));
    document(&output)
}

pub(crate) fn state<'a>(report: &'a Value, name: &str) -> &'a str {
    let mut nodes = report["nodes"].as_array().unwrap().iter();
    let node = nodes.find(|node| node["name"] == name).unwrap();
    node["state"].as_str().unwrap()
}

pub(crate) fn tls_of(node: &Vmtwin) -> Value {
    let text = std::fs::read(node.home().join("node-tls.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What answers in the place of a node's agent, with what [`tls_of`] told of it.
pub(crate) struct Hostile {
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hostile {
    pub(crate) fn start(tls: &Value, address: &str, router: axum::Router) -> Hostile {
        let pem = |key: &str| tls[key].as_str().unwrap().to_owned();
        let credentials = Credentials {
            certificate: pem("certificate"),
            key: pem("key").into(),
            authority: pem("authority"),
        };
        let address = address.parse().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let limits = Limits {
                    grace: Duration::from_secs(1),
                    ..Limits::default()
                };
                let listener = Listener::bind(address, &credentials, limits);
                let listener = listener.await.unwrap();
                ready.send(()).unwrap();
                let until = async {
                    let _ = ended.await;
                };
                listener.serve(router, until).await;
            });
        });
        is_ready.recv().unwrap();
        Hostile {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.end.take());
        // The next one takes its place.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}
