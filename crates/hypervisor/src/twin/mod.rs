//! The twin: a duplicate of a guest that is resumed, ended by its own operating system, and leaves
//! disks that every application in it has closed.
//!
//! ```text
//! plan ─► overlays ─► start (stopped) ─► state in ─► resume ─► shut down ─► quit ─► finished disks
//!         └──────────────────── on any error: kill ───────────────────┘
//! ```
//! - It is safe beside its guest by structure, chosen before it starts: its disks are overlays over
//!   the point, its network leads nowhere, its channels are connected to nothing (see
//!   [`launch`](crate::launch)).
//! - It runs at low priority, and dies with the process that made it unless it is to stay.
//! - A finished disk is only called so after QEMU said that the guest itself powered off, and after
//!   none of its disks gave it an error.
//!
//! Knows nothing of captures, repositories and catalogs: whoever makes it feeds it.

mod agent;
mod console;
mod cut;
mod error;
mod life;
mod overlay;
mod promote;
mod room;
mod shutdown;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::capture::priority;
use crate::inspect::run_state;
use crate::launch::{
    self, Incoming, LaunchPlan, LaunchRequest, Network, RestoredDisk, RunningTpm, Tap, TpmEmulator,
};
use crate::machine::Machine;
use crate::process::ProcessId;
use crate::qmp::{Qmp, QmpError};
use crate::undo::Undo;
pub use cut::cut_off;
pub use error::TwinError;
pub use life::{Life, LifeOptions, Sign};
pub use overlay::{Backing, Overlay};
pub use promote::{Join, joins};
pub use room::{check_memory, check_room};
pub use shutdown::{Chord, ShutdownOptions, ShutdownReport};

/// How long QEMU may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take to end when asked to.
const QUIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process that was killed may take to vanish.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a resumed twin may take until a processor of it has run.
const EXECUTE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// Added to the priority value of a twin's processes: the guest goes first.
const NICENESS: u8 = 10;

const QMP_SOCKET: &str = "twin.sock";
const CONSOLE_LOG: &str = "twin-console.log";
const QEMU_LOG: &str = "twin-qemu.log";
const TPM_SOCKET: &str = "tpm.sock";
const TPM_STATE: &str = "tpm";
const TPM_LOG: &str = "twin-tpm.log";
/// Socket of the guest agent's channel, in the folder of the monitor's.
pub const AGENT_SOCKET: &str = "qga.sock";
/// Socket of the first console, in the folder of the monitor's.
pub const CONSOLE_SOCKET: &str = "tty.sock";

/// A twin to make.
#[derive(Debug, Clone)]
pub struct TwinRequest {
    /// Folder of its overlays, socket and logs; it exists.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
    /// It may take its guest's place, see [`Twin::promote`]; others end when the thread that starts
    /// them does.
    pub standby: bool,
}

/// A twin that can be made: nothing of it needs what only one machine can have.
#[derive(Debug, Clone)]
pub struct TwinPlan {
    name: String,
    launch: LaunchPlan,
    overlays: Vec<Overlay>,
    tpm: Option<TpmEmulator>,
    dir: PathBuf,
}

impl TwinPlan {
    /// Plans a twin of `machine`, whose disk `id` is an overlay over `backing(id)`. Touches nothing.
    ///
    /// # Errors
    /// [`TwinError::Launch`] names what cannot be made safe, [`TwinError::Tpm`] what its TPM lacks.
    pub fn new(
        machine: &Machine,
        request: &TwinRequest,
        backing: impl Fn(&str) -> Backing,
    ) -> Result<TwinPlan, TwinError> {
        let disks = machine.disks.iter().filter(|disk| disk.included);
        let overlays: Vec<Overlay> = disks
            .map(|disk| Overlay::new(disk, backing(&disk.id), &request.dir))
            .collect();
        let restored = overlays.iter().map(|overlay| RestoredDisk {
            id: overlay.disk_id.clone(),
            path: overlay.path.clone(),
            format: "qcow2".into(),
        });
        let tpm = launch::has_tpm_emulator(machine).then(|| TpmEmulator {
            state_dir: request.dir.join(TPM_STATE),
            socket: request.dir.join(TPM_SOCKET),
            log: request.dir.join(TPM_LOG),
        });
        tpm.as_ref().map(TpmEmulator::check).transpose()?;
        let mut launch = launch::plan(
            machine,
            &LaunchRequest {
                disks: restored.collect(),
                qmp_socket: request.dir.join(QMP_SOCKET),
                incoming: Incoming::State,
                network: match request.standby {
                    true => Network::Standby,
                    false => Network::None,
                },
                name: Some(request.name.clone()),
                console_log: request.dir.join(CONSOLE_LOG),
                console_socket: Some(request.dir.join(CONSOLE_SOCKET)),
                agent_socket: Some(request.dir.join(AGENT_SOCKET)),
                dir: request.dir.clone(),
                accel_override: None,
                new_vmgenid: true,
                tpm_socket: tpm.as_ref().map(|tpm| tpm.socket.clone()),
            },
        )
        .map_err(TwinError::Launch)?;
        launch.args.push("-S".to_owned());
        launch.dies_with_parent = !request.standby;
        launch.niceness = NICENESS;
        Ok(TwinPlan {
            name: request.name.clone(),
            launch,
            overlays,
            tpm,
            dir: request.dir.clone(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its monitor's socket.
    #[must_use]
    pub fn qmp_socket(&self) -> &Path {
        &self.launch.qmp_socket
    }

    /// What ends its processes, to be registered before the start: each has a path on its command
    /// line that no other process has.
    #[must_use]
    pub fn undos(&self) -> Vec<(&'static str, Undo)> {
        let process = |path: &Path| Undo::Process {
            argument: path.to_owned(),
        };
        let mut undos = vec![("twin", process(&self.launch.qmp_socket))];
        undos.extend(
            self.tpm
                .iter()
                .map(|tpm| ("twin tpm", process(&tpm.state_dir))),
        );
        undos
    }

    /// Its disks.
    #[must_use]
    pub fn overlays(&self) -> &[Overlay] {
        &self.overlays
    }

    /// Its taps, where it is a standby.
    #[must_use]
    pub fn taps(&self) -> &[Tap] {
        &self.launch.taps
    }

    /// Makes the overlays and starts QEMU, stopped. The socket takes the state.
    ///
    /// # Errors
    /// See [`TwinError`]; nothing runs then.
    pub fn start(&self) -> Result<(Twin, UnixStream), TwinError> {
        for overlay in &self.overlays {
            overlay.create()?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(TwinError::Io)?;
        let log = self.dir.join(QEMU_LOG);
        // The state of its TPM comes with the machine's.
        let tpm = self.tpm.as_ref().map(|tpm| {
            fs::create_dir(&tpm.state_dir).map_err(TwinError::Io)?;
            tpm.start().map_err(TwinError::Tpm)
        });
        let tpm = tpm.transpose()?;
        let launched = launch::start(&self.launch, Some(OwnedFd::from(theirs)), &log)?;
        let twin = Twin::adopt(launched.pid(), &self.launch.qmp_socket, &log)?;
        // It ends with QEMU from here on.
        tpm.into_iter().for_each(RunningTpm::keep);
        Ok((twin, ours))
    }
}

/// A twin's process. Dropping it kills it.
#[derive(Debug)]
pub struct Twin {
    process: ProcessId,
    qmp: Qmp,
    /// Folder of its sockets.
    dir: PathBuf,
    log: PathBuf,
    /// Dropping it kills it.
    armed: bool,
}

impl Twin {
    /// Takes over a QEMU that was started as a copy of a guest, whose output goes to `log`.
    ///
    /// # Errors
    /// It has ended, or does not greet; it is killed then.
    pub fn adopt(pid: u32, qmp_socket: &Path, log: &Path) -> Result<Twin, TwinError> {
        let ended = || ended(pid, log);
        let process = ProcessId::of(pid).ok_or_else(ended)?;
        match Qmp::connect_to_new(qmp_socket, GREETING_TIMEOUT, &|| process.is_alive()) {
            Ok(qmp) => Ok(Twin {
                process,
                qmp,
                dir: qmp_socket.parent().unwrap_or(Path::new("/")).to_owned(),
                log: log.to_owned(),
                armed: true,
            }),
            Err(error) if error.is_gone() && !process.is_alive() => Err(ended()),
            Err(error) => {
                kill(process);
                Err(error.into())
            }
        }
    }

    /// Takes over a QEMU that another program started, and whose monitor is behind a relay at
    /// `address`. Its sockets are in `dir`, its output goes to `log`.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn adopt_relayed(address: &Path, dir: &Path, log: &Path) -> Result<Twin, TwinError> {
        let qmp = Qmp::connect(address, GREETING_TIMEOUT)?;
        let pid = qmp.peer().pid;
        let twin = Twin {
            process: ProcessId::of(pid).ok_or_else(|| ended(pid, log))?,
            qmp,
            dir: dir.to_owned(),
            log: log.to_owned(),
            armed: true,
        };
        // The guest goes first.
        priority::lower_all(pid, i32::from(NICENESS));
        Ok(twin)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Waits until its state is in; it stands still then.
    ///
    /// # Errors
    /// QEMU did not take the state, `limit` has passed, or `cancelled` said so.
    pub fn wait_ready(
        &mut self,
        limit: Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), TwinError> {
        let begun = Instant::now();
        loop {
            let state = run_state(&mut self.qmp);
            let state = state.map_err(|error| self.explain(error))?;
            if state != "inmigrate" {
                return Ok(());
            }
            if cancelled() {
                return Err(TwinError::Cancelled);
            }
            if begun.elapsed() > limit {
                return Err(TwinError::NotReady {
                    seconds: limit.as_secs(),
                    tail: launch::tail(&self.log),
                });
            }
            thread::sleep(POLL);
        }
    }

    /// Lets it run, so that its end is seen: a reset and a panic end it too.
    ///
    /// # Errors
    /// QEMU refused, or no processor of it has run after some seconds.
    pub fn resume(&mut self) -> Result<(), TwinError> {
        self.run(true)
    }

    /// Lets it run, and looks whether it comes up.
    ///
    /// # Errors
    /// It ended, or gave no sign in time.
    pub fn comes_up(
        &mut self,
        options: &LifeOptions,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Life, TwinError> {
        self.run(false)?;
        life::watch(self, options, cancelled)
    }

    fn run(&mut self, reset_ends: bool) -> Result<(), TwinError> {
        let reboot = if reset_ends { "shutdown" } else { "reset" };
        let actions = json!({"reboot": reboot, "shutdown": "pause", "panic": "pause",
                             "watchdog": "pause"});
        self.execute("set-action", actions)?;
        let before = self.processor_time_ns()?;
        self.execute("cont", Value::Null)?;
        let begun = Instant::now();
        while self.processor_time_ns()? <= before {
            if begun.elapsed() > EXECUTE_TIMEOUT {
                return Err(TwinError::NotExecuting);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Time that the threads of its processors have run.
    fn processor_time_ns(&mut self) -> Result<u64, TwinError> {
        let cpus = self.execute("query-cpus-fast", Value::Null)?;
        let threads = cpus.as_array().into_iter().flatten();
        let ids = threads.filter_map(|cpu| cpu["thread-id"].as_u64());
        let time = |thread| {
            let path = format!("/proc/{}/task/{thread}/schedstat", self.process.pid);
            let text = fs::read_to_string(path).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        Ok(ids.filter_map(time).sum())
    }

    /// Ends it by its own operating system. Its disks are consistent for every application then.
    ///
    /// # Errors
    /// It ended in another way, or not in time: its disks are no better than after a power cut.
    pub fn shut_down(
        &mut self,
        options: &ShutdownOptions,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<ShutdownReport, TwinError> {
        shutdown::run(self, options, cancelled)
    }

    /// Ends QEMU in order, so that its images are closed.
    ///
    /// # Errors
    /// It did not end; it is killed then.
    pub fn quit(mut self) -> Result<(), TwinError> {
        match self.qmp.execute("quit", Value::Null) {
            Ok(_) => {}
            Err(error) if error.is_gone() => {}
            // Who stands between us and it ends a machine that powered off, as QEMU's user would.
            Err(_) if self.qmp.is_relayed() => {}
            Err(error) => return Err(error.into()),
        }
        let begun = Instant::now();
        while self.process.is_alive() {
            if begun.elapsed() > QUIT_TIMEOUT {
                return Err(TwinError::StillThere);
            }
            thread::sleep(POLL);
        }
        self.armed = false;
        Ok(())
    }

    /// Kills it.
    ///
    /// # Errors
    /// It may not be killed.
    pub fn kill(&mut self) -> Result<(), TwinError> {
        self.process.kill(KILL_TIMEOUT).map_err(TwinError::Kill)
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// [`TwinError::Ended`] with its last words.
    pub fn check(&mut self) -> Result<(), TwinError> {
        self.execute("query-status", Value::Null).map(drop)
    }

    fn execute(&mut self, name: &str, arguments: Value) -> Result<Value, TwinError> {
        let answer = self.qmp.execute(name, arguments);
        answer.map_err(|error| self.explain(error))
    }

    /// An error of the monitor; where QEMU ended, its last words.
    fn explain(&self, error: QmpError) -> TwinError {
        match error.is_gone() {
            true => ended(self.process.pid, &self.log),
            false => error.into(),
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if self.armed {
            kill(self.process);
        }
    }
}

fn kill(process: ProcessId) {
    if let Err(error) = process.kill(KILL_TIMEOUT) {
        tracing::error!(%error, pid = process.pid, "a twin could not be killed");
    }
}

/// That a QEMU has ended, and how, where it was started by this process.
fn ended(pid: u32, log: &Path) -> TwinError {
    TwinError::Ended {
        how: exit_status(pid).unwrap_or_default(),
        tail: launch::tail(log),
    }
}

/// How a child has ended. It closes its sockets a moment before it does.
fn exit_status(pid: u32) -> Option<String> {
    use rustix::process::{Pid, WaitOptions, waitpid};
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    for _ in 0..50 {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG).ok()? {
            return Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!(" with exit code {code}"),
                (None, Some(signal)) => format!(" by signal {signal}"),
                (None, None) => return None,
            });
        }
        thread::sleep(POLL);
    }
    None
}
