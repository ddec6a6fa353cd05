//! Runs a plan: QEMU in a session of its own, with its output in a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::error::StartError;
use super::plan::LaunchPlan;
use crate::process::without_secrets;

/// How long QEMU may take to make its QMP socket; it does so before anything slow.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// What of the log an error shows.
const TAIL_BYTES: u64 = 2000;

/// A running QEMU. Dropping it leaves it running.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    log: PathBuf,
}

impl Launched {
    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Ends it at once, and waits for it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// The end of what it wrote to its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

/// Starts a plan and waits until the QMP socket is there.
///
/// It may refuse the first connection: QEMU makes the name an instant before it listens.
///
/// `incoming` is the live state, a socket, pipe or file; QEMU gets it as its standard input and
/// holds it alone. QEMU's output goes to `log`. Where QEMU ends early, the error shows the end of
/// that log.
pub fn start(
    plan: &LaunchPlan,
    incoming: Option<OwnedFd>,
    log: &Path,
) -> Result<Launched, StartError> {
    if plan.incoming != incoming.is_some() {
        return Err(StartError::IncomingMismatch {
            expected: plan.incoming,
        });
    }
    let _ = std::fs::remove_file(&plan.qmp_socket);
    let child = command(plan, incoming, log)?
        .spawn()
        .map_err(|source| StartError::Spawn {
            program: words(plan).into_iter().next().unwrap_or_default(),
            source,
        })?;
    let mut launched = Launched {
        child,
        log: log.to_owned(),
    };
    match wait_for_socket(plan, &mut launched) {
        Ok(()) => {
            lower_session(launched.pid(), plan.niceness);
            Ok(launched)
        }
        Err(error) => {
            let _ = launched.kill();
            Err(error)
        }
    }
}

fn command(
    plan: &LaunchPlan,
    incoming: Option<OwnedFd>,
    log: &Path,
) -> Result<Command, StartError> {
    let open = || -> io::Result<(File, File)> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        Ok((file.try_clone()?, file))
    };
    let (out, err) = open().map_err(|source| StartError::Log {
        path: log.to_owned(),
        source,
    })?;
    let words = words(plan);
    let mut command = Command::new(words.first().map_or("", String::as_str));
    without_secrets(&mut command)
        .args(words.get(1..).unwrap_or_default())
        .current_dir(&plan.dir)
        .stdin(incoming.map_or_else(Stdio::null, Stdio::from))
        .stdout(out)
        .stderr(err);
    Ok(command)
}

fn words(plan: &LaunchPlan) -> Vec<String> {
    let mut words = wrapper(plan);
    words.extend(plan.args.iter().cloned());
    words
}

/// Programs that set the process up and replace themselves by the next, so that the process id is
/// QEMU's. The network namespace before others: making it may clear what they set.
fn wrapper(plan: &LaunchPlan) -> Vec<String> {
    // Keys that end us are not for it, and a session has a share of the processors of its own.
    let mut words: Vec<&str> = vec!["setsid", "--"];
    if plan.own_network {
        words.extend(match rustix::process::geteuid().is_root() {
            true => ["unshare", "--net", "--"].as_slice(),
            false => &["unshare", "--user", "--map-root-user", "--net", "--"],
        });
    }
    if plan.dies_with_parent {
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"]);
    }
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if plan.niceness > 0 {
        words.extend(["nice".into(), "-n".into(), plan.niceness.to_string()]);
    }
    words
}

/// Where the kernel shares processors between sessions (autogroups), niceness counts within one
/// only, and the session's own has to be set. It does not everywhere, so nothing depends on it.
fn lower_session(pid: u32, niceness: u8) {
    if niceness > 0 {
        let _ = std::fs::write(format!("/proc/{pid}/autogroup"), niceness.to_string());
    }
}

fn wait_for_socket(plan: &LaunchPlan, launched: &mut Launched) -> Result<(), StartError> {
    let start = Instant::now();
    while start.elapsed() < SOCKET_TIMEOUT {
        if let Ok(Some(status)) = launched.try_wait() {
            return Err(StartError::EndedEarly {
                status: status.to_string(),
                tail: launched.log_tail(),
            });
        }
        // Only looked at: connecting would take the place of the one client that it serves.
        if plan.qmp_socket.exists() {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Err(StartError::NoSocket {
        seconds: SOCKET_TIMEOUT.as_secs(),
        tail: launched.log_tail(),
    })
}

/// The last bytes of a log, as text.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(the log can't be read: {error})"),
    }
}
