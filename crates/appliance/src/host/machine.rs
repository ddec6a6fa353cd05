//! The machine: a QEMU with disks, one port, and nothing else.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Access;

use super::error::ApplianceError;
use super::initramfs::{self, INIT};
use super::kernel::Kernel;
use super::receive::Receiver;
use super::{DiskSource, Settings};
use crate::guest::PORT;
use crate::wire::{Entry, FileSystem, Frame, Name, Reply, Request, read_frame, write_json};

/// How many disks fit on the machine's bus.
pub const MAX_DISKS: usize = 24;
const MEMORY_MIB: u32 = 768;
/// A machine without an accelerator on a busy host takes half a minute.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// With KVM it takes a second or two.
const KVM_TIMEOUT: Duration = Duration::from_secs(20);
/// Replaying a large journal from far away takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);
/// What is kept of the console.
const CONSOLE_BYTES: usize = 4 << 10;
/// Most entries in a folder, or file systems, that are taken into memory.
const MAX_LISTED: usize = 1 << 20;

/// A machine that runs. It ends with this value, and with the thread that started it.
pub struct Appliance {
    child: Child,
    port: Port,
    kvm_failed: bool,
    buffer: Vec<u8>,
    _folder: tempfile::TempDir,
}

/// The serial port's other end, and why it may be silent.
struct Port {
    stream: UnixStream,
    settings: Settings,
    console: Console,
    /// Of the first answer, then of others.
    timeout: Duration,
}

impl Appliance {
    /// Starts a machine with these disks, and waits until it answers. It never writes to them.
    ///
    /// # Errors
    /// When something that it is made of is missing, and when it does not come up.
    pub fn start(settings: &Settings, disks: &[DiskSource]) -> Result<Appliance, ApplianceError> {
        if let Some(accel) = &settings.accel {
            return Self::start_with(settings, disks, accel, BOOT_TIMEOUT);
        }
        let tcg = || Self::start_with(settings, disks, "tcg", BOOT_TIMEOUT);
        if rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_err() {
            return tcg();
        }
        match Self::start_with(settings, disks, "kvm", KVM_TIMEOUT) {
            // A `/dev/kvm` that opens may still run no ordinary kernel.
            Err(ApplianceError::Machine { .. }) => {
                let mut appliance = tcg()?;
                appliance.kvm_failed = true;
                Ok(appliance)
            }
            other => other,
        }
    }

    /// Whether KVM was tried, did not work, and cost the time that it was waited for.
    #[must_use]
    pub fn kvm_failed(&self) -> bool {
        self.kvm_failed
    }

    fn start_with(
        settings: &Settings,
        disks: &[DiskSource],
        accel: &str,
        timeout: Duration,
    ) -> Result<Appliance, ApplianceError> {
        if disks.len() > MAX_DISKS {
            return Err(ApplianceError::TooManyDisks {
                disks: disks.len(),
                most: MAX_DISKS,
            });
        }
        let kernel = Kernel::find(settings)?;
        let folder = tempfile::Builder::new()
            .prefix("appliance-")
            .tempdir_in(&settings.scratch)
            .map_err(ApplianceError::file("make a folder in", &settings.scratch))?;
        let initramfs = folder.path().join("initramfs");
        let libraries = initramfs::write(&initramfs, &settings.program, &kernel, disks.len())?;
        let socket = folder.path().join("port.sock");
        let listener =
            UnixListener::bind(&socket).map_err(ApplianceError::file("make", &socket))?;
        let plan = Plan {
            accel,
            kernel: &kernel.image,
            initramfs: &initramfs,
            socket: &socket,
            disks,
            libraries: &libraries,
            init_args: &settings.init_args,
            folder: folder.path(),
        };
        let (mut child, console) = plan.spawn()?;
        let stream = match accept(&listener, &mut child, settings, &console) {
            Ok(stream) => stream,
            Err(error) => {
                end(&mut child);
                return Err(error);
            }
        };
        let mut appliance = Appliance {
            child,
            port: Port {
                stream,
                settings: settings.clone(),
                console,
                timeout,
            },
            kvm_failed: false,
            buffer: Vec::new(),
            _folder: folder,
        };
        match appliance.reply()? {
            Reply::Ready => {}
            other => return Err(nonsense(&other)),
        }
        appliance.port.timeout = ANSWER_TIMEOUT;
        Ok(appliance)
    }

    /// The file systems on its disks; their places are their numbers.
    ///
    /// # Errors
    /// When the machine does not answer, or not as it should.
    pub fn file_systems(&mut self) -> Result<Vec<FileSystem>, ApplianceError> {
        self.ask(&Request::FileSystems)?;
        let mut found = Vec::new();
        loop {
            match self.reply()? {
                Reply::FileSystem(one) if found.len() < MAX_LISTED => found.push(one),
                Reply::End => return Ok(found),
                other => return Err(refusal(other)),
            }
        }
    }

    /// The entry at a path and, if it is a folder, what is in it, by name. What cannot be looked at
    /// is told to `skipped`, with the reason; so is what is wrong with the whole.
    ///
    /// # Errors
    /// [`ApplianceError::Refused`] where the path leads nowhere; when the machine does not answer.
    pub fn list(
        &mut self,
        file_system: usize,
        path: &Name,
        mut skipped: impl FnMut(&Name, &str),
    ) -> Result<(Entry, Vec<Entry>), ApplianceError> {
        self.ask(&Request::List {
            file_system,
            path: path.clone(),
        })?;
        let mut warned = false;
        let first = loop {
            match self.reply()? {
                Reply::Entry(entry) => break entry,
                Reply::Warning { why } if !warned => skipped(path, &why),
                other => return Err(refusal(other)),
            }
            warned = true;
        };
        let mut found = Vec::new();
        loop {
            match self.reply()? {
                Reply::Entry(entry) if entry.name.is_entry() && found.len() < MAX_LISTED => {
                    found.push(entry);
                }
                Reply::Skipped { name, why } => skipped(&name, &why),
                Reply::End => return Ok((first, found)),
                other => return Err(refusal(other)),
            }
        }
    }

    /// Hands a file, or a folder with all it holds, to `receiver`.
    ///
    /// # Errors
    /// [`ApplianceError::Refused`] where the path leads nowhere; those of the receiver; when the
    /// machine does not answer.
    pub fn get(
        &mut self,
        file_system: usize,
        path: &Name,
        receiver: &mut impl Receiver,
    ) -> Result<(), ApplianceError> {
        self.ask(&Request::Get {
            file_system,
            path: path.clone(),
        })?;
        loop {
            match self.frame()? {
                Frame::Data { offset_bytes, data } => receiver.data(offset_bytes, data)?,
                Frame::Json(json) => match parse(json)? {
                    Reply::End => return Ok(()),
                    Reply::Error { message } => return Err(ApplianceError::Refused(message)),
                    reply => receiver.reply(reply)?,
                },
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(), ApplianceError> {
        let written = write_json(&mut self.port, request);
        written.map_err(|error| self.port.trouble(&error))
    }

    fn reply(&mut self) -> Result<Reply, ApplianceError> {
        match self.frame()? {
            Frame::Json(json) => parse(json),
            Frame::Data { .. } => Err(ApplianceError::Nonsense("data of no file".into())),
        }
    }

    fn frame(&mut self) -> Result<Frame<'_>, ApplianceError> {
        let port = &mut self.port;
        read_frame(port, &mut self.buffer).map_err(|error| port.trouble(&error))
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// It has nothing to lose.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn parse(json: &[u8]) -> Result<Reply, ApplianceError> {
    serde_json::from_slice(json).map_err(|error| ApplianceError::Nonsense(error.to_string()))
}

fn refusal(reply: Reply) -> ApplianceError {
    match reply {
        Reply::Error { message } => ApplianceError::Refused(message),
        other => nonsense(&other),
    }
}

fn nonsense(reply: &Reply) -> ApplianceError {
    let text: String = format!("{reply:?}").chars().take(100).collect();
    ApplianceError::Nonsense(format!("{text} was not asked for"))
}

impl Port {
    /// What an error on the port means.
    fn trouble(&self, error: &io::Error) -> ApplianceError {
        let what = match error.kind() {
            _ if self.settings.cancel.load(Ordering::Relaxed) => return ApplianceError::Cancelled,
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                return ApplianceError::Nonsense(error.to_string());
            }
            io::ErrorKind::TimedOut => "does not answer",
            _ => "ended",
        };
        ApplianceError::Machine {
            what,
            console: self.console.text(),
        }
    }

    /// Repeats what would block until it does not, the user asks to stop, or the time is over.
    fn patiently<T>(&mut self, mut act: impl FnMut(&UnixStream) -> io::Result<T>) -> io::Result<T> {
        let start = Instant::now();
        loop {
            match act(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.settings.cancel.load(Ordering::Relaxed) || start.elapsed() > self.timeout {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for Port {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.read(buf))
    }
}

impl Write for Port {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn accept(
    listener: &UnixListener,
    child: &mut Child,
    settings: &Settings,
    console: &Console,
) -> Result<UnixStream, ApplianceError> {
    let machine = |what| ApplianceError::Machine {
        what,
        console: console.text(),
    };
    let prepare = || -> io::Result<()> { listener.set_nonblocking(true) };
    prepare().map_err(|_| machine("cannot be waited for"))?;
    let start = Instant::now();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            let prepared = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_read_timeout(Some(POLL)))
                .and_then(|()| stream.set_write_timeout(Some(POLL)));
            prepared.map_err(|_| machine("cannot be waited for"))?;
            return Ok(stream);
        }
        if settings.cancel.load(Ordering::Relaxed) {
            return Err(ApplianceError::Cancelled);
        }
        if let Ok(Some(_)) = child.try_wait() {
            // Its last words may still be on their way.
            std::thread::sleep(POLL);
            return Err(machine("ended at once"));
        }
        if start.elapsed() > BOOT_TIMEOUT {
            return Err(machine("does not start"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of what the machine and its QEMU say.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn follow(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Console {
        let console = Console::default();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            stdout.map(|s| Box::new(s) as Box<dyn Read + Send>),
            stderr.map(|s| Box::new(s) as Box<dyn Read + Send>),
        ];
        for mut stream in streams.into_iter().flatten() {
            let console = console.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    console.add(&buffer[..n]);
                }
            });
        }
        console
    }

    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let too_many = kept.len().saturating_sub(CONSOLE_BYTES);
        kept.drain(..too_many);
    }

    /// The last lines, fit for a terminal.
    fn text(&self) -> String {
        const LINES: usize = 12;
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept).replace('\r', "");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = lines.len().saturating_sub(LINES);
        let shown = lines[last..]
            .iter()
            .map(|line| format!("  {}", Name(line.as_bytes().to_vec())));
        shown.collect::<Vec<_>>().join("\n")
    }
}

/// What the machine is made of.
struct Plan<'a> {
    accel: &'a str,
    kernel: &'a Path,
    initramfs: &'a Path,
    socket: &'a Path,
    disks: &'a [DiskSource],
    libraries: &'a [PathBuf],
    init_args: &'a [String],
    folder: &'a Path,
}

impl Plan<'_> {
    fn spawn(&self) -> Result<(Child, Console), ApplianceError> {
        let mut words: Vec<&OsStr> = Vec::new();
        let root = rustix::process::geteuid().is_root();
        if root {
            words.extend(["unshare", "--net", "--"].map(OsStr::new));
        }
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsStr::new));
        let mut command = Command::new(words[0]);
        let program = "qemu-system-x86_64";
        command
            .args(&words[1..])
            .arg(program)
            .args(self.arguments(root));
        command
            // Where QEMU keeps what is written to the disks: it is gone with the process.
            .env("TMPDIR", self.folder)
            .env_remove("VMTWIN_PASSWORD")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| ApplianceError::Program {
            program: program.into(),
            package: "qemu-system-x86 and util-linux",
            source,
        })?;
        let console = Console::follow(child.stdout.take(), child.stderr.take());
        Ok((child, console))
    }

    fn arguments(&self, root: bool) -> Vec<String> {
        let accel = self.accel;
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        add(&[
            "-name",
            "vmtwin-appliance",
            "-no-user-config",
            "-nodefaults",
        ]);
        add(&["-machine", &format!("q35,accel={accel}"), "-cpu", "max"]);
        add(&["-m", &format!("{MEMORY_MIB}M"), "-smp", "1"]);
        add(&[
            "-display",
            "none",
            "-vga",
            "none",
            "-nic",
            "none",
            "-no-reboot",
        ]);
        add(&[
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        add(&["-kernel", &self.kernel.to_string_lossy()]);
        add(&["-initrd", &self.initramfs.to_string_lossy()]);
        add(&["-append", &self.command_line()]);
        add(&["-device", "virtio-serial-pci"]);
        let socket = doubled(self.socket);
        add(&["-chardev", &format!("socket,id=port,path={socket}")]);
        add(&[
            "-device",
            &format!("virtserialport,chardev=port,name={PORT}"),
        ]);
        add(&["-device", "virtio-rng-pci"]);
        for (number, disk) in self.disks.iter().enumerate() {
            let (socket, export) = (doubled(&disk.socket), doubled(Path::new(&disk.export)));
            add(&[
                "-drive",
                &format!(
                    "if=none,id=d{number},format=raw,snapshot=on,cache=unsafe,file.driver=nbd,\
                     file.server.type=unix,file.server.path={socket},file.export={export}"
                ),
            ]);
            let device = format!("virtio-blk-pci,drive=d{number},serial=d{number}");
            add(&["-device", &device]);
        }
        // A QEMU that what it reads has taken over can do little.
        let sandbox = "on,obsolete=deny,spawn=deny,resourcecontrol=deny";
        match root {
            true => add(&["-sandbox", sandbox, "-run-with", "user=nobody"]),
            false => add(&["-sandbox", &format!("{sandbox},elevateprivileges=deny")]),
        }
        args
    }

    /// Words after `--` are the program's.
    fn command_line(&self) -> String {
        let libraries: Vec<_> = self.libraries.iter().map(|l| l.to_string_lossy()).collect();
        format!(
            "console=ttyS0 quiet loglevel=3 panic=-1 rdinit={INIT} LD_LIBRARY_PATH={} -- {}",
            libraries.join(":"),
            self.init_args.join(" ")
        )
    }
}

/// A comma ends a value unless it is doubled.
fn doubled(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
