//! Commands, ports and temporary folders.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Runs a command to its end; a failure panics with its output.
pub fn run(command: &mut Command) -> Output {
    try_run(command).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Runs a command to its end; a failure is an error that holds its output.
pub fn try_run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n--- stdout\n{}--- stderr\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(output)
}

/// Prometheus's own judge of figures and rules; `tools/setup` puts it into the cache.
pub fn promtool() -> PathBuf {
    let path = crate::cache::folder().join("promtool");
    assert!(path.exists(), "no {}: run tools/setup", path.display());
    path
}

/// A TCP port of the loopback address that nobody used a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binding a port");
    listener
        .local_addr()
        .expect("the address of a bound port")
        .port()
}

/// A temporary folder that goes away with this value, unless `VMTWIN_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    temp: Option<TempDir>,
}

impl Workdir {
    /// Makes a folder with a short path, since sockets' paths are limited to 107 bytes.
    pub fn new() -> Workdir {
        Workdir::with_prefix("tinytest-")
    }

    pub(crate) fn with_prefix(prefix: &str) -> Workdir {
        let temp = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir()
            .expect("making a folder");
        if std::env::var_os("VMTWIN_TEST_KEEP").is_none() {
            return Workdir {
                path: temp.path().to_owned(),
                temp: Some(temp),
            };
        }
        let path = temp.keep();
        eprintln!("testkit: keeping {}", path.display());
        Workdir { path, temp: None }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Leaves the folder to the caller.
    pub(crate) fn into_path(mut self) -> PathBuf {
        if let Some(temp) = self.temp.take() {
            let _ = temp.keep();
        }
        self.path.clone()
    }

    /// Whether the folder stays when this value goes.
    pub(crate) fn is_kept(&self) -> bool {
        self.temp.is_none()
    }
}

impl Default for Workdir {
    fn default() -> Self {
        Workdir::new()
    }
}
