//! Servers that take what is sent to them: HTTP (Python's own) and SMTP (Debian's aiosmtpd).
//! They are other programs than those under test, so what they took is what was sent.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Workdir, free_port};

const PROGRAM: &str = include_str!("sink.py");
/// Debian's: another Python of the machine does not have its modules.
const PYTHON: &str = "/usr/bin/python3";
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of one protocol; it ends with this value.
#[derive(Debug)]
pub struct Sink {
    child: Child,
    work: Workdir,
    port: u16,
}

impl Sink {
    /// An HTTP server. Each request is a document `{path, headers, body}`, the headers' names in
    /// lower case.
    pub fn http() -> Sink {
        Sink::start("http", None)
    }

    /// The same with TLS, by a certificate and its key (PEM files).
    pub fn https(certificate: &Path, key: &Path) -> Sink {
        Sink::start("http", Some((certificate, key)))
    }

    /// An SMTP server. Each mail is a document `{from, to, subject, text, headers, user}`.
    pub fn smtp() -> Sink {
        Sink::start("smtp", None)
    }

    /// The same with STARTTLS, which it insists on, and with one user: `me`, password `secret`.
    pub fn smtp_tls(certificate: &Path, key: &Path) -> Sink {
        Sink::start("smtp", Some((certificate, key)))
    }

    fn start(kind: &str, tls: Option<(&Path, &Path)>) -> Sink {
        let work = Workdir::new();
        let port = free_port();
        let program = work.join("sink.py");
        std::fs::write(&program, PROGRAM).expect("writing the sink");
        let mut command = Command::new(PYTHON);
        command.arg(program).arg(kind).arg(port.to_string());
        command.arg(work.path()).stdin(Stdio::piped());
        if let Some((certificate, key)) = tls {
            command.args([certificate, key]);
        }
        let child = command.spawn().expect("starting /usr/bin/python3");
        let sink = Sink { child, work, port };
        let end = Instant::now() + PATIENCE;
        while !sink.work.join("ready").exists() {
            assert!(Instant::now() < end, "the {kind} sink does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        sink
    }

    /// Its port, on the loopback address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What its next answers are: an HTTP status or an SMTP reply code; 0 stalls.
    pub fn answer(&self, code: u16) {
        let draft = self.work.join("draft");
        std::fs::write(&draft, code.to_string()).expect("writing the answer");
        std::fs::rename(draft, self.work.join("answer")).expect("giving the answer");
    }

    /// What came, in its order, whether it was accepted or not.
    pub fn taken(&self) -> Vec<Value> {
        let entries = std::fs::read_dir(self.work.path()).expect("reading the sink");
        let paths = entries.map(|entry| entry.expect("reading the sink").path());
        let mut paths: Vec<PathBuf> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
            .collect();
        paths.sort();
        let document = |path: &PathBuf| {
            let bytes = std::fs::read(path).expect("reading what came");
            serde_json::from_slice(&bytes).expect("a document")
        };
        paths.iter().map(document).collect()
    }

    /// Waits until so many have come, and returns them.
    pub fn wait_for(&self, count: usize) -> Vec<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let taken = self.taken();
            if taken.len() >= count {
                return taken;
            }
            assert!(Instant::now() < end, "{count} are not sent: {taken:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
