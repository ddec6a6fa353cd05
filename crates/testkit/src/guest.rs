//! A running guest.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::command::{GuestBuilder, Places};
use crate::console::{self, Heartbeat, Log, Report, Tick, parse_report};
use crate::process::Workdir;
use crate::qmp::Qmp;
use crate::tpm::Swtpm;

const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// A QEMU process that belongs to a test. It is killed, and its folder removed,
/// when this value goes, and also when the test's process dies.
#[derive(Debug)]
pub struct Guest {
    child: Mutex<Child>,
    pid: u32,
    qmp: Qmp,
    heartbeat: Heartbeat,
    log: Log,
    serial: UnixStream,
    arguments: Vec<String>,
    places: Places,
    _swtpm: Option<Swtpm>,
    _watcher: Watcher,
    // Last, since fields are dropped in order.
    _folder: Workdir,
}

impl Guest {
    /// Describes a guest.
    pub fn builder() -> GuestBuilder {
        GuestBuilder::default()
    }

    /// Starts QEMU and, if there is a time for it, waits until the guest has booted.
    pub(crate) fn launch(builder: &GuestBuilder, boot_timeout: Option<Duration>) -> Result<Guest> {
        let folder = Workdir::with_prefix("tinyguest-");
        let places = Places::in_folder(folder.path());
        let arguments = builder.arguments(&places, false)?;
        let swtpm = builder.start_helpers(&places)?;
        let mut child = Reaped::spawn(&arguments, &places)?;
        let pid = child.child().id();
        let watcher = Watcher::start(pid, &folder)?;
        let qmp = connect(&places, &mut child)?;
        let heartbeat = Heartbeat::listen(&places.heartbeat())?;
        let serial = console::attach(&places.serial())?;
        let log = Log::new(&places.serial_log);
        let child = Mutex::new(child.keep());
        let guest = Guest {
            child,
            pid,
            qmp,
            heartbeat,
            log,
            serial,
            arguments,
            places,
            _swtpm: swtpm,
            _watcher: watcher,
            _folder: folder,
        };
        if let Some(timeout) = boot_timeout {
            guest.try_wait_for("ready mode=", timeout)?;
        }
        Ok(guest)
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The arguments that QEMU was started with, without the program.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The folder of its sockets, logs and disks.
    pub fn folder(&self) -> &Path {
        &self.places.folder
    }

    /// The QMP socket for the code under test; nobody else is connected to it.
    pub fn qmp_path(&self) -> &Path {
        &self.places.qmp
    }

    /// The test's own QMP connection.
    pub fn test_qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The path of a disk that the builder made; `format` is `qcow2` or `raw`.
    pub fn disk_path(&self, index: usize, format: &str) -> PathBuf {
        self.places.folder.join(format!("disk{index}.{format}"))
    }

    /// The first serial port's log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line on the first serial port; panics after `timeout`, and as
    /// soon as QEMU has ended.
    pub fn wait_for(&self, part: &str, timeout: Duration) -> String {
        self.try_wait_for(part, timeout)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn try_wait_for(&self, part: &str, timeout: Duration) -> Result<String> {
        self.log
            .try_wait_for(0, part, timeout, || self.check_running())
    }

    /// The latest tick; panics if there is none.
    pub fn last_tick(&self) -> Tick {
        self.log.last_tick().expect("the guest has not ticked yet")
    }

    /// Waits for a number that the guest has not printed yet.
    pub fn wait_for_next_tick(&self, timeout: Duration) -> Tick {
        let last = self.log.last_tick().map_or(0, |tick| tick.n);
        self.log.wait_for_tick_after(last, timeout)
    }

    /// The guest's heartbeat, timed on the host.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// Milliseconds between each two heartbeats that arrived after `since`.
    pub fn heartbeat_gaps_ms(&self, since: Instant) -> Vec<f64> {
        self.heartbeat.gaps_ms(since)
    }

    /// Sends a command line to the ticker.
    pub fn send(&self, command: &str) {
        console::send(&self.serial, command).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Asks the guest for what is in its memory and on its disks.
    pub fn report(&self) -> Report {
        let mark = self.log.mark();
        self.send("report");
        let line = self.log.wait_for_since(mark, "report mem=", REPORT_TIMEOUT);
        parse_report(&line).unwrap_or_else(|| panic!("a report that is none: '{line}'"))
    }

    /// Presses the power button and waits until QEMU has ended.
    pub fn power_off(&self, timeout: Duration) {
        self.qmp.execute("system_powerdown", json!({}));
        self.wait_for_end(timeout);
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait_for_end(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while self.is_running() {
            assert!(
                Instant::now() < end,
                "the guest has not ended in {timeout:?}; the log ends with:\n{}",
                self.log.tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the QEMU process is there.
    pub fn is_running(&self) -> bool {
        self.child
            .lock()
            .unwrap()
            .try_wait()
            .expect("asking for QEMU's state")
            .is_none()
    }

    /// Kills QEMU, as a host's failure would.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        // Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// What QEMU itself has complained about.
    pub fn qemu_log(&self) -> String {
        std::fs::read_to_string(self.places.folder.join("qemu.log")).unwrap_or_default()
    }

    fn check_running(&self) -> Result<()> {
        if !self.is_running() {
            bail!("QEMU has ended: {}", self.qemu_log());
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child that is killed unless it is kept.
struct Reaped(Option<Child>);

impl Reaped {
    fn spawn(arguments: &[String], places: &Places) -> Result<Reaped> {
        let log = std::fs::File::create(places.folder.join("qemu.log"))?;
        let child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting qemu-system-x86_64 (tools/setup installs it)")?;
        Ok(Reaped(Some(child)))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("a child that was not given away")
    }

    fn keep(mut self) -> Child {
        self.0.take().expect("a child that was not given away")
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects the test's QMP, or says why QEMU has ended.
fn connect(places: &Places, child: &mut Reaped) -> Result<Qmp> {
    let end = Instant::now() + SOCKET_TIMEOUT;
    loop {
        let failure = match Qmp::connect(&places.test_qmp()) {
            Ok(qmp) => return Ok(qmp),
            Err(failure) => failure,
        };
        if let Some(status) = child.child().try_wait()? {
            let log = std::fs::read_to_string(places.folder.join("qemu.log"))?;
            bail!("QEMU ended at once ({status}): {log}");
        }
        if Instant::now() > end {
            return Err(failure.context("QEMU opened no QMP socket"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A shell that outlives the test's process just long enough to kill the guest
/// and remove its folder: it waits for the end of its standard input.
#[derive(Debug)]
struct Watcher(Child);

impl Watcher {
    fn start(pid: u32, folder: &Workdir) -> Result<Watcher> {
        let script = if folder.is_kept() {
            "cat >/dev/null; kill -9 $0"
        } else {
            "cat >/dev/null; kill -9 $0; rm -rf \"$1\""
        };
        let child = Command::new("sh")
            .args(["-c", script])
            .arg(pid.to_string())
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the guest's watcher")?;
        Ok(Watcher(child))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
