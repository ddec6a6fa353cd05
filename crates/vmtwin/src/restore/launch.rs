//! Starts the restored guest: plan before anything is written, start after everything is.
//!
//! ```text
//! plan ─ check ─► TPM, start (processors stopped) ─► state ─► query-status ─► cont, if it ran ─► keep
//!                 └─── drop, or the guard's end of a killed restore: QEMU and its files go ───┘
//! ```
//! QEMU starts stopped, so that a guest that was paused at the point does not run for an instant,
//! and nothing runs before all has worked.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmtwin_hypervisor::inspect::run_state;
use vmtwin_hypervisor::launch::{
    self, Incoming, LaunchPlan, LaunchRequest, Launched, RestoredDisk, RunningTpm,
};
use vmtwin_hypervisor::machine::Machine;
use vmtwin_hypervisor::process::ProcessId;
use vmtwin_hypervisor::qmp::{Qmp, QmpError};
use vmtwin_hypervisor::twin::{AGENT_SOCKET, CONSOLE_SOCKET};
use vmtwin_repository::SnapshotReader;

use super::error::RestoreError;
use super::guard::Guard;
use super::instant;
use super::inventory::Inventory;
use super::launch_files::{CONSOLE_LOG, LaunchFiles, QEMU_LOG, QMP_SOCKET};
use super::memory;
use super::progress::Watch;
use super::report::RunningGuest;
use super::request::RestoreRequest;
use super::state::StoredState;
use super::take_back::TakeBack;
use super::tpm::Tpm;
use crate::failpoint;

/// How long QEMU may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take from the last byte of the state until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// Longest path of a socket on Linux, bytes.
const SOCKET_PATH_BYTES: usize = 107;

/// A launch that was planned and may go ahead.
#[derive(Debug)]
pub(super) struct Launch {
    plan: LaunchPlan,
    files: LaunchFiles,
    tpm: Option<Tpm>,
    /// The guest ran at the point, or boots.
    resumes: bool,
}

/// A guest that was started. Dropping it ends it.
pub(super) struct Started {
    launched: Launched,
    launch: Launch,
    tpm: Option<RunningTpm>,
    armed: bool,
}

impl Launch {
    /// Plans, and checks what may be in the way. `run_state` is that at the point where a state
    /// comes in.
    pub(super) fn plan(
        inventory: &Inventory,
        request: &RestoreRequest,
        dir: &Path,
        disks: Vec<RestoredDisk>,
        run_state: Option<&str>,
    ) -> Result<Launch, RestoreError> {
        let machine = &inventory.machine;
        check_program(machine)?;
        let tpm = Tpm::plan(machine, &inventory.files, dir, request.force)?;
        let launch_request = LaunchRequest {
            disks,
            qmp_socket: dir.join(QMP_SOCKET),
            incoming: if run_state.is_some() {
                Incoming::State
            } else {
                Incoming::None
            },
            network: request.network,
            name: request.name.clone(),
            console_log: dir.join(CONSOLE_LOG),
            console_socket: request.hold.then(|| dir.join(CONSOLE_SOCKET)),
            agent_socket: request.hold.then(|| dir.join(AGENT_SOCKET)),
            dir: dir.to_owned(),
            accel_override: request.accel.clone(),
            new_vmgenid: true,
            tpm_socket: tpm.as_ref().map(|tpm| tpm.socket().to_owned()),
        };
        let mut plan = launch::plan(machine, &launch_request).map_err(RestoreError::Launch)?;
        plan.args.push("-S".to_owned());
        if request.instant {
            let monitor = instant::monitor_argument(dir);
            plan.args.extend(["-qmp".to_owned(), monitor]);
        }
        check_socket(&plan.qmp_socket, request.force)?;
        if run_state.is_none() && tpm.as_ref().is_some_and(|tpm| !tpm.is_stored()) {
            let text = "the snapshot holds no state of the guest's TPM: it finds an empty one";
            plan.warnings.push(text.to_owned());
        }
        let tpm_state = tpm.as_ref().map(Tpm::state_dir);
        Ok(Launch {
            plan,
            files: LaunchFiles::check(dir, tpm_state, request.force)?,
            tpm,
            resumes: !request.hold && run_state.is_none_or(|state| state == "running"),
        })
    }

    /// What the plan warns of.
    pub(super) fn warnings(&self) -> &[String] {
        &self.plan.warnings
    }

    /// A folder that has to be there for the start.
    pub(super) fn tpm_state_dir(&self) -> Option<&Path> {
        self.tpm.as_ref().map(Tpm::state_dir)
    }

    /// Starts the guest, gives it its state, and lets it run if it ran. Gives the length of the
    /// stream too.
    pub(super) fn start(
        self,
        reader: &SnapshotReader,
        state: Option<&StoredState>,
        guard: &Guard,
        watch: Watch<'_>,
    ) -> Result<(Started, u64), RestoreError> {
        self.register(guard)?;
        failpoint::pass("start")?;
        let (feed, incoming) = match state {
            Some(state) => {
                let pair = UnixStream::pair().map_err(RestoreError::file("make", "a socket"))?;
                (Some((state, pair.0)), Some(OwnedFd::from(pair.1)))
            }
            None => (None, None),
        };
        let mut started = self.start_programs(incoming)?;
        failpoint::pass("state")?;
        let fed = match feed {
            Some((state, socket)) => started.feed(reader, state, socket, watch)?,
            None => 0,
        };
        let mut qmp = started.ready(watch)?;
        failpoint::pass("resume")?;
        started.resume(&mut qmp)?;
        Ok((started, fed))
    }

    /// Starts the TPM and QEMU; where one fails, nothing of them is left.
    fn start_programs(self, incoming: Option<OwnedFd>) -> Result<Started, RestoreError> {
        let outcome = self.try_start_programs(incoming);
        match outcome {
            Ok((tpm, launched)) => Ok(Started {
                launched,
                launch: self,
                tpm,
                armed: true,
            }),
            Err(error) => {
                self.files.remove();
                Err(error)
            }
        }
    }

    fn try_start_programs(
        &self,
        incoming: Option<OwnedFd>,
    ) -> Result<(Option<RunningTpm>, Launched), RestoreError> {
        let tpm = self.tpm.as_ref().map(Tpm::start).transpose()?;
        failpoint::pass("qemu")?;
        let launched = launch::start(&self.plan, incoming, &self.qemu_log());
        Ok((tpm, launched.map_err(RestoreError::Start)?))
    }

    /// Tells the guard of the programs before they are there. The paths of their sockets, in a
    /// folder that is locked, tell them from all others.
    fn register(&self, guard: &Guard) -> Result<(), RestoreError> {
        guard.add(&TakeBack::LaunchFiles(self.files.clone()))?;
        if let Some(tpm) = &self.tpm {
            guard.add(&TakeBack::Process {
                argument: tpm.control_argument(),
            })?;
        }
        let mut after = self.plan.args.iter().skip_while(|arg| *arg != "-qmp");
        match after.nth(1) {
            Some(argument) => guard.add(&TakeBack::Process {
                argument: argument.clone(),
            }),
            None => Err(RestoreError::Internal {
                what: "the plan of the launch",
            }),
        }
    }

    fn qemu_log(&self) -> PathBuf {
        self.files.dir().join(QEMU_LOG)
    }
}

impl Started {
    /// Gives QEMU the state. A QEMU that ends or hangs ends the feeding too.
    fn feed(
        &mut self,
        reader: &SnapshotReader,
        state: &StoredState,
        mut socket: UnixStream,
        watch: Watch<'_>,
    ) -> Result<u64, RestoreError> {
        let fed = thread::scope(|scope| {
            let feeder = scope.spawn(move || memory::write(reader, state, &mut socket, watch));
            while !feeder.is_finished() {
                if (watch.cancelled)() {
                    // Frees a feeder that waits for QEMU.
                    let _ = self.launched.kill();
                }
                thread::sleep(POLL);
            }
            feeder.join().unwrap_or(Err(RestoreError::Internal {
                what: "feeding of QEMU",
            }))
        });
        match fed {
            Err(RestoreError::Rebuild(error)) => {
                Err(self.ended().unwrap_or(RestoreError::Rebuild(error)))
            }
            other => other,
        }
    }

    /// Waits until the state is in.
    fn ready(&mut self, watch: Watch<'_>) -> Result<Qmp, RestoreError> {
        let start = Instant::now();
        let mut state = "starting".to_owned();
        let process = ProcessId::of(self.launched.pid());
        let alive = || process.is_some_and(ProcessId::is_alive);
        let socket = &self.launch.plan.qmp_socket;
        let mut qmp = Qmp::connect_to_new(socket, GREETING_TIMEOUT, &alive)
            .map_err(|error| self.qmp_error(error))?;
        while start.elapsed() < READY_TIMEOUT {
            if (watch.cancelled)() {
                return Err(RestoreError::Cancelled);
            }
            state = run_state(&mut qmp).map_err(|error| self.qmp_error(error))?;
            if state != "inmigrate" {
                return Ok(qmp);
            }
            thread::sleep(POLL);
        }
        let (seconds, tail) = (READY_TIMEOUT.as_secs(), self.launched.log_tail());
        Err(RestoreError::NotReady {
            state,
            seconds,
            tail,
        })
    }

    fn resume(&mut self, qmp: &mut Qmp) -> Result<(), RestoreError> {
        if !self.launch.resumes {
            return Ok(());
        }
        let resumed = qmp.execute("cont", Value::Null);
        resumed.map(drop).map_err(|error| self.qmp_error(error))
    }

    /// Leaves the guest running.
    pub(super) fn keep(mut self) -> RunningGuest {
        self.armed = false;
        if let Some(tpm) = self.tpm.take() {
            tpm.keep();
        }
        RunningGuest {
            pid: self.launched.pid(),
            qmp_socket: self.launch.plan.qmp_socket.clone(),
            console_log: self.launch.files.dir().join(CONSOLE_LOG),
            qemu_log: self.launch.qemu_log(),
            run_state: if self.launch.resumes {
                "running"
            } else {
                "paused"
            }
            .to_owned(),
            changes: self.launch.plan.changes.clone(),
        }
    }

    /// An error of the monitor; where QEMU ended, its last words.
    fn qmp_error(&mut self, error: QmpError) -> RestoreError {
        match error.is_gone() {
            true => self.ended().unwrap_or(RestoreError::Qmp(error)),
            false => RestoreError::Qmp(error),
        }
    }

    /// QEMU's last words, if it ended. It closes its sockets a moment before it does.
    fn ended(&mut self) -> Option<RestoreError> {
        for _ in 0..50 {
            if let Ok(Some(status)) = self.launched.try_wait() {
                let (status, tail) = (status.to_string(), self.launched.log_tail());
                return Some(RestoreError::EndedEarly { status, tail });
            }
            thread::sleep(POLL);
        }
        None
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.launched.kill();
            self.tpm = None;
            self.launch.files.remove();
        }
    }
}

/// A manifest is not trusted to name any program.
fn check_program(machine: &Machine) -> Result<(), RestoreError> {
    let program = machine.args.first().map(String::as_str).unwrap_or_default();
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str());
    match name {
        Some(name) if name.contains("qemu") || name == "kvm" => Ok(()),
        _ => Err(RestoreError::NotQemu {
            program: program.to_owned(),
        }),
    }
}

/// A socket that nobody listens on is what a killed guest left, and is no hindrance.
fn check_socket(socket: &Path, force: bool) -> Result<(), RestoreError> {
    let path = socket.to_owned();
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(RestoreError::PathTooLong {
            path,
            limit: SOCKET_PATH_BYTES,
        });
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(RestoreError::RunsHere { socket: path });
    }
    match fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() && !force => Err(RestoreError::Exists { path }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_in_use_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(QMP_SOCKET);
        check_socket(&path, false).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(
            check_socket(&path, true),
            Err(RestoreError::RunsHere { .. })
        ));
        drop(listener);
        check_socket(&path, false).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(
            check_socket(&path, false),
            Err(RestoreError::Exists { .. })
        ));
    }
}
