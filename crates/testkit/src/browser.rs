//! A headless Chromium, driven by chromedriver over the WebDriver protocol (W3C, level 2).
//!
//! Only what tests of pages need: real clicks and keys, scripts that look, screenshots, what the
//! console says, and the looks that people set (dark, narrow).

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};
use ureq::Agent;

use crate::{Workdir, free_port};

/// For a browser to start, on a busy machine.
const START: Duration = Duration::from_secs(60);
/// The key of an element's reference in answers; the protocol fixes it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. It ends with this value.
pub struct Browser {
    driver: Child,
    agent: Agent,
    /// Address of the session.
    session: String,
    /// Holds the profile and whatever else is written.
    _work: Workdir,
}

impl Browser {
    /// Starts it.
    ///
    /// # Panics
    /// If Chromium or chromedriver is missing (tools/setup installs both) or does not start.
    pub fn start() -> Browser {
        let work = Workdir::new();
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("TMPDIR", work.path())
            .env("HOME", work.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starting chromedriver; tools/setup installs it");
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build();
        let mut browser = Browser {
            driver,
            agent: agent.into(),
            session: format!("http://127.0.0.1:{port}"),
            _work: work,
        };
        browser.wait_for_driver();
        // The sandbox of a browser that root starts does not work; the pages are our own.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1280,900",
            "--lang=en-US",
        ];
        let options = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = browser.post("/session", &options);
        let id = made["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/session/{id}", browser.session);
        browser
    }

    fn wait_for_driver(&self) {
        let begun = Instant::now();
        let status = format!("{}/status", self.session);
        while self.agent.get(&status).call().is_err() {
            assert!(begun.elapsed() < START, "chromedriver does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.try_post(path, body)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn try_post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{path}", self.session));
        let request = request.header("content-type", "application/json");
        let mut answer = request.send(body.to_string()).expect("chromedriver");
        let text = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string();
        let document: Value = serde_json::from_str(&text.expect("an answer")).expect("JSON");
        match answer.status().is_success() {
            true => Ok(document["value"].clone()),
            false => Err(document["value"]["message"].to_string()),
        }
    }

    /// Goes to an address.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url}));
    }

    /// What a script returns; its arguments are `arguments[0]` and so on.
    pub fn script(&self, script: &str, arguments: &[Value]) -> Value {
        let body = json!({"script": script, "args": arguments});
        self.post("/execute/sync", &body)
    }

    /// What a script hands to its last argument.
    pub fn script_that_waits(&self, script: &str) -> Value {
        self.post("/execute/async", &json!({"script": script, "args": []}))
    }

    /// Waits until a script returns what is true.
    pub fn wait(&self, what: &str, script: &str, timeout: Duration) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.script(script, &[]);
            if !found.is_null() && found != false && found != "" {
                return found;
            }
            if begun.elapsed() > timeout {
                let shown = self.script(
                    "return location.pathname + '\\n' + document.body.innerText",
                    &[],
                );
                panic!(
                    "{what}: not so after {timeout:?}\n{}",
                    shown.as_str().unwrap_or("")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the page shows a text.
    pub fn wait_for_text(&self, text: &str, timeout: Duration) {
        let script = format!("return document.body.innerText.includes({})", json!(text));
        self.wait(&format!("the text {text:?}"), &script, timeout);
    }

    /// Clicks a button, a link or a label with this text, as a mouse does; waits until there is one.
    pub fn click(&self, text: &str) {
        let path = format!(
            "//*[self::button or self::a or self::label or self::summary][normalize-space()={text:?} or b[normalize-space()={text:?}]]"
        );
        self.with_element("xpath", &path, |element| {
            self.try_post(&format!("/element/{element}/click"), &json!({}))
        });
    }

    /// Types into the field of this name, in place of what is in it.
    pub fn fill(&self, name: &str, text: &str) {
        self.with_element("css selector", &format!("[name={name:?}]"), |element| {
            self.try_post(&format!("/element/{element}/clear"), &json!({}))?;
            let keys = json!({"text": text});
            self.try_post(&format!("/element/{element}/value"), &keys)
        });
    }

    /// Presses keys, whatever has the focus.
    pub fn keys(&self, keys: &str) {
        let press = |key: char| [("keyDown", key), ("keyUp", key)];
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(press)
            .map(|(kind, key)| json!({"type": kind, "value": key.to_string()}))
            .collect();
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.post("/actions", &body);
    }

    /// Tries until it works: pages change while they are looked at.
    fn with_element(&self, by: &str, what: &str, then: impl Fn(&str) -> Result<Value, String>) {
        let begun = Instant::now();
        loop {
            let found = self.try_post("/element", &json!({"using": by, "value": what}));
            let done = found.and_then(|found| then(found[ELEMENT].as_str().unwrap_or_default()));
            let Err(error) = done else { return };
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sets what the window is like: its width, and whether people like it dark.
    pub fn look(&self, width: u32, is_dark: bool) {
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.command("Emulation.setEmulatedMedia", &json!({"features": features}));
        self.command(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}),
        );
    }

    fn command(&self, name: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": name, "params": parameters});
        self.post("/goog/cdp/execute", &body)
    }

    /// Writes the whole page as a PNG.
    pub fn screenshot(&self, to: &Path) {
        let whole = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.command("Page.captureScreenshot", &whole);
        let text = shot["data"].as_str().expect("a screenshot");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        std::fs::write(to, bytes.expect("base64")).expect("writing a screenshot");
    }

    /// The warnings and errors of the console since the last time: of scripts, and what the policy
    /// refused.
    pub fn console(&self) -> Vec<String> {
        let said = self.post("/se/log", &json!({"type": "browser"}));
        let said = said.as_array().cloned().unwrap_or_default();
        let is_wrong = |line: &&Value| line["level"] == "SEVERE" || line["level"] == "WARNING";
        let told = |line: &Value| line["message"].as_str().unwrap_or("").to_owned();
        said.iter().filter(is_wrong).map(told).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
