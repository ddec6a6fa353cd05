//! `qemu-nbd` on one image, for one connection; it ends with it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vmtwin_hypervisor::process::without_secrets;
use vmtwin_nbd::{Client, Options, context};

use super::error::RestoreError;

/// How long `qemu-nbd` may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to close the image after the connection ended.
const END_TIMEOUT: Duration = Duration::from_secs(120);
/// How long one request may take: a flush writes out what the system holds back.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(5);
/// Most of its words that an error shows.
const MESSAGE_BYTES: usize = 2000;

/// A running `qemu-nbd`. Dropping it ends it at once.
#[derive(Debug)]
pub struct NbdServer {
    child: Child,
    image: PathBuf,
    /// What it prints. Its file has no name any more once we are connected.
    log: File,
    /// A folder that only we can enter, for the socket.
    dir: PathBuf,
}

impl NbdServer {
    /// Starts it on a qcow2 image, and connects. It ends when the connection does, so that it does
    /// not outlive us.
    pub(super) fn start(image: &Path) -> Result<(NbdServer, Client), RestoreError> {
        const WRITE: [&str; 3] = ["--format=qcow2", "--cache=writeback", "--discard=unmap"];
        NbdServer::start_with(image, &WRITE)
    }

    /// The same for reading an image of this format. Refused by QEMU's image locks while somebody
    /// may write to it.
    pub fn start_reading(image: &Path, format: &str) -> Result<(NbdServer, Client), RestoreError> {
        let format = format!("--format={format}");
        NbdServer::start_with(image, &["--read-only", "--allocation-depth", &format])
    }

    fn start_with(image: &Path, flags: &[&str]) -> Result<(NbdServer, Client), RestoreError> {
        let dir = socket_dir().map_err(RestoreError::file("make a folder for", image))?;
        let spawned =
            log(&dir).and_then(|log| Ok((spawn(image, flags, &dir, log.try_clone()?)?, log)));
        let (child, log) = match spawned {
            Ok(spawned) => spawned,
            Err(source) => {
                let _ = fs::remove_dir_all(&dir);
                return Err(RestoreError::NoProgram {
                    program: "qemu-nbd",
                    package: "qemu-utils",
                    source,
                });
            }
        };
        let mut server = NbdServer {
            child,
            image: image.to_owned(),
            log,
            dir,
        };
        let client = server.connect()?;
        // Nobody needs names there any more, so that nothing stays if we are killed.
        let _ = fs::remove_dir_all(&server.dir);
        Ok((server, client))
    }

    fn connect(&mut self) -> Result<Client, RestoreError> {
        let socket = self.dir.join("socket");
        let options = Options {
            request_timeout: REQUEST_TIMEOUT,
            ..Options::with_contexts([context::BASE_ALLOCATION, context::ALLOCATION_DEPTH])
        };
        let start = Instant::now();
        loop {
            match Client::connect_unix(&socket, "", &options) {
                // The socket is not there yet, or it is and nobody listens yet.
                Err(vmtwin_nbd::Error::Connect { .. }) => {}
                other => {
                    return other.map_err(|source| RestoreError::Nbd {
                        path: self.image.clone(),
                        source,
                    });
                }
            }
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if ended || start.elapsed() > START_TIMEOUT {
                return Err(self.failed());
            }
            thread::sleep(POLL);
        }
    }

    /// Flushes, ends the connection, and waits until the image is closed.
    pub(super) fn finish(mut self, client: Client) -> Result<(), RestoreError> {
        let nbd = |source| RestoreError::Nbd {
            path: self.image.clone(),
            source,
        };
        client.flush().map_err(nbd)?;
        client.disconnect().map_err(nbd)?;
        let start = Instant::now();
        while start.elapsed() < END_TIMEOUT {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(POLL),
                Ok(Some(status)) if status.success() => return Ok(()),
                _ => break,
            }
        }
        Err(self.failed())
    }

    fn failed(&self) -> RestoreError {
        let mut message = vec![0; MESSAGE_BYTES];
        let length = self.log.read_at(&mut message, 0).unwrap_or(0);
        let message = String::from_utf8_lossy(&message[..length]);
        RestoreError::Program {
            program: "qemu-nbd",
            path: self.image.clone(),
            message: message.trim().to_owned(),
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn spawn(image: &Path, flags: &[&str], dir: &Path, log: File) -> io::Result<Child> {
    without_secrets(&mut Command::new("qemu-nbd"))
        .args(flags)
        .arg("--socket")
        .arg(dir.join("socket"))
        .arg("--")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

fn log(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Read by us at the start, and added to at the end by `qemu-nbd`.
    options.read(true).append(true).create_new(true);
    options.open(dir.join("log"))
}

/// A folder of a new name under the system's, since the path of a socket must be short.
fn socket_dir() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let name = format!("vmtwin-nbd-{:016x}", u64::from_ne_bytes(random));
    let dir = std::env::temp_dir().join(name);
    DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}
