//! A `vmtwin serve` of a test, and a client of its API that is none of ours.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use ureq::Agent;

use super::{PATIENCE, Vmtwin};

/// A running daemon. It is killed with this value.
pub(crate) struct Serve {
    child: Child,
    pub(crate) url: String,
}

impl Serve {
    pub(crate) fn start(vmtwin: &Vmtwin, more: &[&str], env: &[(&str, &str)]) -> Serve {
        let log = vmtwin.path("serve.log");
        let anywhere = ["--listen", "127.0.0.1:0"];
        let place = if more.contains(&"--listen") {
            &[][..]
        } else {
            &anywhere
        };
        let args = [&["serve"], place, more].concat();
        let child = vmtwin
            .command(&args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut serve = Serve {
            child,
            url: String::new(),
        };
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if let Some(at) = said.find("pages are at ") {
                let url = said[at..].lines().next().unwrap();
                serve.url = url["pages are at ".len()..].to_owned();
                return serve;
            }
            let ended = serve.child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{said}");
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a service manager does.
    pub(crate) fn end(mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Who has this token.
    pub(crate) fn client(&self, token: &str) -> Client {
        let agent = Agent::config_builder().http_status_as_error(false).build();
        Client {
            agent: agent.into(),
            url: self.url.clone(),
            token: token.to_owned(),
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A token of a scope.
pub(crate) fn token(vmtwin: &Vmtwin, scope: &str) -> String {
    let name = format!("test-{scope}");
    let made = vmtwin.json(&["token", "add", &name, "--scope", scope]);
    made["token"].as_str().unwrap().to_owned()
}

/// Somebody with a token.
pub(crate) struct Client {
    pub(crate) agent: Agent,
    url: String,
    token: String,
}

impl Client {
    /// The status and the document of an answer.
    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        let request = self.agent.get(format!("{}{path}", self.url));
        let answer = request.header("authorization", format!("Bearer {}", self.token));
        document(answer.call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(
        &self,
        path: &str,
        body: &Value,
        more: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let request = request
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        document(request.send(body.to_string()).unwrap())
    }

    /// The events of a job until its end: kind and data.
    pub(crate) fn events(&self, id: &str) -> Vec<(String, Value)> {
        let request = self
            .agent
            .get(format!("{}/api/v1/jobs/{id}/events", self.url));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        let mut answer = request.call().unwrap();
        let mut kind = String::new();
        let mut events = Vec::new();
        for line in BufReader::new(answer.body_mut().as_reader()).lines() {
            let line = line.unwrap();
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut kind);
            } else if let Some(data) = line.strip_prefix("data: ") {
                events.push((kind.clone(), serde_json::from_str(data).unwrap()));
            }
        }
        events
    }
}

pub(crate) fn document(mut answer: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let text = answer.body_mut().read_to_string().unwrap();
    let status = answer.status().as_u16();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}
