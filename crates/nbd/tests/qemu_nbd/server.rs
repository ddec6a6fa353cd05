//! A qemu-nbd of the test's own, killed by its handle, and other tools of QEMU.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use vmtwin_nbd::{Client, Error, Options};

pub(crate) const EXPORT: &str = "disk";

pub(crate) struct Server {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Server {
    /// Serves `image` on a socket beside it.
    pub(crate) fn start(image: &Path, format: &str, args: &[&str]) -> Self {
        let socket = image.with_extension("sock");
        let child = Command::new("qemu-nbd")
            .args([
                "--persistent",
                "--shared=8",
                "--export-name",
                EXPORT,
                "--format",
                format,
            ])
            .arg("--socket")
            .arg(&socket)
            .args(args)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd starts (package qemu-utils)");
        Self { child, socket }
    }

    pub(crate) fn connect(&self, contexts: &[&str]) -> Client {
        let options = Options::with_contexts(contexts.iter().copied());
        let begun = Instant::now();
        loop {
            match Client::connect_unix(&self.socket, EXPORT, &options) {
                Err(Error::Connect { .. }) if begun.elapsed() < Duration::from_secs(20) => {
                    sleep(Duration::from_millis(10));
                }
                other => return other.unwrap(),
            }
        }
    }

    /// What libnbd says of a context: offset, length, flags.
    pub(crate) fn nbdinfo_map(&self, context: &str) -> Vec<(u64, u64, u64)> {
        let uri = format!("nbd+unix:///{EXPORT}?socket={}", self.socket.display());
        let map = format!("--map={context}");
        let json = run("nbdinfo", &[&map, "--json", &uri]);
        let extents: serde_json::Value = serde_json::from_str(&json).unwrap();
        let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().unwrap();
        let extents = extents.as_array().unwrap().iter();
        extents
            .map(|e| (number(e, "offset"), number(e, "length"), number(e, "type")))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool that must succeed; returns what it prints.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
