//! The description of a guest and the QEMU command line it comes to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::accel::Accel;
use crate::disk::DiskSpec;
use crate::guest::Guest;
use crate::image::GuestImage;
use crate::tpm::{self, Swtpm};

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What the guest does; see `guest/ticker.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Counts in memory and on every disk and prints `count n=…`: for people to look at.
    Count,
    /// The same, faster and with more dirty memory, and prints `tick n=…` lines.
    Load,
    /// Appends to a ledger on an ext4 file system on the first disk, prints `ack n=…`.
    Ext4,
    /// Nothing.
    Idle,
    /// Starts some processes that end soon, ten times a second.
    Fork,
    /// Hands over to the Debian on the first disk; see [`crate::debian`].
    Debian,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Count => "count",
            Mode::Load => "load",
            Mode::Ext4 => "ext4",
            Mode::Idle => "idle",
            Mode::Fork => "fork",
            Mode::Debian => "debian",
        }
    }

    /// Numbers per second, MiB dirtied per second, MiB of working set, console period.
    fn pace(self) -> Pace {
        let pace = |rate_hz, dirty_mib, memory_mib, console_ms| Pace {
            rate_hz,
            dirty_mib,
            memory_mib,
            console_ms,
        };
        match self {
            Mode::Count => pace(10, 1, 4, 1000),
            Mode::Load => pace(200, 8, 32, 100),
            Mode::Ext4 => pace(20, 1, 4, 1000),
            Mode::Idle | Mode::Fork | Mode::Debian => pace(0, 0, 0, 1000),
        }
    }

    /// How long to wait for `ready`: tiny guests take about 6 s without KVM, and
    /// several tests may share two processors.
    pub(crate) fn boot_timeout(self) -> Duration {
        match self {
            Mode::Debian => Duration::from_secs(600),
            _ => Duration::from_secs(180),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Mode> {
        let all = [Mode::Count, Mode::Load, Mode::Ext4, Mode::Idle, Mode::Fork];
        let found = all.into_iter().find(|mode| mode.name() == text);
        found.with_context(|| format!("'{text}' is none of count, load, ext4, idle, fork"))
    }
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    rate_hz: u64,
    dirty_mib: u64,
    memory_mib: u64,
    console_ms: u64,
}

/// How disks are given to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskStyle {
    /// `-blockdev` with node names `disk0-format` over `disk0-file`, device `disk0`.
    Blockdev,
    /// `-drive if=virtio`: QEMU makes names up.
    Drive,
}

/// Where the files and sockets of a guest are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) folder: PathBuf,
    pub(crate) qmp: PathBuf,
    pub(crate) serial_log: PathBuf,
}

impl Places {
    pub(crate) fn in_folder(folder: &Path) -> Places {
        Places {
            folder: folder.to_owned(),
            qmp: folder.join("qmp.sock"),
            serial_log: folder.join("serial.log"),
        }
    }

    pub(crate) fn test_qmp(&self) -> PathBuf {
        self.folder.join("test-qmp.sock")
    }

    pub(crate) fn serial(&self) -> PathBuf {
        self.folder.join("serial.sock")
    }

    pub(crate) fn heartbeat(&self) -> PathBuf {
        self.folder.join("heartbeat.sock")
    }
}

/// A guest to be started.
#[derive(Debug, Clone)]
pub struct GuestBuilder {
    name: String,
    memory_mib: u64,
    processors: u32,
    disks: Vec<DiskSpec>,
    disk_style: DiskStyle,
    mode: Mode,
    pace: Pace,
    accel: Option<Accel>,
    machine: String,
    uefi: bool,
    uefi_vars: Option<PathBuf>,
    tpm: bool,
    network: bool,
    incoming: Option<String>,
    paused: bool,
    kernel_args: Vec<String>,
    extra_args: Vec<String>,
}

impl Default for GuestBuilder {
    fn default() -> Self {
        GuestBuilder {
            name: "tinyguest".to_owned(),
            memory_mib: 256,
            processors: 1,
            disks: Vec::new(),
            disk_style: DiskStyle::Blockdev,
            mode: Mode::Load,
            pace: Mode::Load.pace(),
            accel: None,
            machine: "q35".to_owned(),
            uefi: false,
            uefi_vars: None,
            tpm: false,
            network: false,
            incoming: None,
            paused: false,
            kernel_args: Vec::new(),
            extra_args: Vec::new(),
        }
    }
}

impl GuestBuilder {
    /// The guest's name (default `tinyguest`).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Memory (default 256 MiB).
    pub fn memory_mib(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Virtual processors (default 1).
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// The disks, in order; the ticker's disk 1 is the first.
    pub fn disks(mut self, disks: impl IntoIterator<Item = DiskSpec>) -> Self {
        self.disks = disks.into_iter().collect();
        self
    }

    /// Gives disks as `-drive if=virtio`, so that they have no names of ours.
    pub fn old_style_drives(mut self) -> Self {
        self.disk_style = DiskStyle::Drive;
        self
    }

    /// What the guest does (default [`Mode::Load`]); it also sets the usual pace.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self.pace = mode.pace();
        self
    }

    /// Numbers per second; 0 is as fast as the disks go. Set it after the mode.
    pub fn rate_hz(mut self, rate_hz: u64) -> Self {
        self.pace.rate_hz = rate_hz;
        self
    }

    /// MiB of the working set that are stamped per second. Set it after the mode.
    pub fn dirty_mib_per_s(mut self, dirty_mib: u64) -> Self {
        self.pace.dirty_mib = dirty_mib;
        self
    }

    /// MiB of memory that are stamped in turn. Set it after the mode.
    pub fn working_set_mib(mut self, memory_mib: u64) -> Self {
        self.pace.memory_mib = memory_mib;
        self
    }

    /// Milliseconds between two lines on the console. Set it after the mode.
    pub fn console_ms(mut self, console_ms: u64) -> Self {
        self.pace.console_ms = console_ms;
        self
    }

    /// Uses KVM where it boots and `VMTWIN_TEST_ACCEL` does not forbid it: the default.
    pub fn accel_auto(mut self) -> Self {
        self.accel = None;
        self
    }

    /// Uses this and no other.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// QEMU's machine type (default `q35`).
    pub fn machine(mut self, machine: impl Into<String>) -> Self {
        self.machine = machine.into();
        self
    }

    /// Boots by UEFI, with a variable store of the guest's own (node `uefi-vars`).
    pub fn uefi(mut self, uefi: bool) -> Self {
        self.uefi = uefi;
        self
    }

    /// A variable store that exists, for a guest that is a copy of another.
    pub fn uefi_vars(mut self, vars: impl Into<PathBuf>) -> Self {
        self.uefi = true;
        self.uefi_vars = Some(vars.into());
        self
    }

    /// A TPM `tpm0`, emulated by a `swtpm` that ends with the guest.
    pub fn tpm(mut self) -> Self {
        self.tpm = true;
        self
    }

    /// A network card `nic0` on a user-mode network that reaches nothing; the guest
    /// sends a frame about every second.
    pub fn network(mut self, network: bool) -> Self {
        self.network = network;
        self
    }

    /// Waits for a migration stream from there instead of booting.
    pub fn incoming(mut self, uri: impl Into<String>) -> Self {
        self.incoming = Some(uri.into());
        self
    }

    /// Starts with the processors stopped.
    pub fn paused(mut self) -> Self {
        self.paused = true;
        self
    }

    /// More words for the kernel's command line.
    pub fn kernel_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.kernel_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// More arguments for QEMU.
    pub fn extra_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.extra_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts the guest and waits until its program runs; panics if it does not.
    ///
    /// A guest that is paused or waits for a stream is returned at once.
    pub fn start(self) -> Guest {
        self.try_start().unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Like [`GuestBuilder::start`], with an error instead.
    pub fn try_start(self) -> Result<Guest> {
        let boots = self.incoming.is_none() && !self.paused;
        let timeout = boots.then(|| self.mode.boot_timeout());
        Guest::launch(&self, timeout)
    }

    /// Starts what the guest needs to be there before it.
    pub(crate) fn start_helpers(&self, places: &Places) -> Result<Option<Swtpm>> {
        self.tpm.then(|| Swtpm::start(&places.folder)).transpose()
    }

    /// QEMU's arguments; makes disks that do not exist.
    pub(crate) fn arguments(&self, places: &Places, daemon: bool) -> Result<Vec<String>> {
        let image = GuestImage::build()?;
        let accel = self.accel.unwrap_or_else(Accel::detect);
        let mut args = Args::default();
        args.option("-name", format!("guest={}", self.name));
        self.add_machine(&mut args, accel, places)?;
        args.option("-kernel", text(&image.kernel)?);
        args.option("-initrd", text(&image.initramfs)?);
        args.option("-append", self.kernel_line());
        for (index, disk) in self.disks.iter().enumerate() {
            self.add_disk(&mut args, index, disk, places)?;
        }
        add_consoles(&mut args, places, daemon)?;
        if self.network {
            args.option("-netdev", "user,id=net0,restrict=on");
            args.option("-device", "virtio-net-pci,id=nic0,netdev=net0,romfile=");
        }
        if self.tpm {
            let socket = escaped(&tpm::socket(&places.folder))?;
            args.option("-chardev", format!("socket,id=tpm-socket,path={socket}"));
            args.option("-tpmdev", "emulator,id=tpm0,chardev=tpm-socket");
            args.option("-device", "tpm-crb,tpmdev=tpm0");
        }
        if let Some(uri) = &self.incoming {
            args.option("-incoming", uri);
        }
        if self.paused {
            args.flag("-S");
        }
        args.0.extend(self.extra_args.iter().cloned());
        Ok(args.0)
    }

    fn add_machine(&self, args: &mut Args, accel: Accel, places: &Places) -> Result<()> {
        let mut machine = self.machine.clone();
        if self.uefi {
            machine.push_str(",pflash0=uefi-code,pflash1=uefi-vars");
            args.option(
                "-blockdev",
                file_node("uefi-code", Path::new(OVMF_CODE), true)?,
            );
            args.option(
                "-blockdev",
                file_node("uefi-vars", &self.make_vars(places)?, false)?,
            );
        }
        args.option("-machine", machine);
        args.option("-accel", accel.name());
        args.option("-cpu", accel.cpu());
        args.option("-m", self.memory_mib.to_string());
        args.option("-smp", self.processors.to_string());
        for flag in ["-nodefaults", "-no-user-config"] {
            args.flag(flag);
        }
        args.option("-display", "none");
        Ok(())
    }

    fn make_vars(&self, places: &Places) -> Result<PathBuf> {
        if let Some(vars) = &self.uefi_vars {
            return Ok(vars.clone());
        }
        let vars = places.folder.join("uefi-vars.fd");
        std::fs::copy(OVMF_VARS, &vars).context("copying the UEFI variables")?;
        Ok(vars)
    }

    pub(crate) fn kernel_line(&self) -> String {
        let Pace {
            rate_hz,
            dirty_mib,
            memory_mib,
            console_ms,
        } = self.pace;
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 vmtwin.mode={} vmtwin.rate_hz={rate_hz} \
             vmtwin.dirty_mib={dirty_mib} vmtwin.memory_mib={memory_mib} \
             vmtwin.console_ms={console_ms}",
            self.mode
        );
        if self.network {
            line.push_str(" vmtwin.address=10.0.2.15/24");
        }
        for word in &self.kernel_args {
            line.push(' ');
            line.push_str(word);
        }
        line
    }

    fn add_disk(
        &self,
        args: &mut Args,
        index: usize,
        disk: &DiskSpec,
        places: &Places,
    ) -> Result<()> {
        let path = disk.make(&places.folder, index)?;
        let format = disk.format().name();
        if self.disk_style == DiskStyle::Drive {
            let path = text(&path)?.replace(',', ",,");
            args.option("-drive", format!("file={path},format={format},if=virtio"));
            return Ok(());
        }
        let file = format!("disk{index}-file");
        args.option("-blockdev", file_node(&file, &path, false)?);
        let node = format!("disk{index}-format");
        let blockdev = json!({
            "driver": format, "node-name": node, "file": file, "discard": "unmap",
        });
        args.option("-blockdev", blockdev.to_string());
        args.option(
            "-device",
            format!("virtio-blk-pci,id=disk{index},drive={node}"),
        );
        Ok(())
    }
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
}

/// Serial ports and QMP sockets. A daemon has one QMP socket and nobody to listen
/// to its heartbeat.
fn add_consoles(args: &mut Args, places: &Places, daemon: bool) -> Result<()> {
    let log = escaped(&places.serial_log)?;
    if daemon {
        args.option("-chardev", format!("file,id=console,path={log},append=on"));
        args.option("-chardev", "null,id=heartbeat");
    } else {
        let log = format!("logfile={log},logappend=on");
        args.option(
            "-chardev",
            format!("{},{log}", server("console", &places.serial())?),
        );
        args.option("-chardev", server("heartbeat", &places.heartbeat())?);
        args.option("-chardev", server("test-qmp", &places.test_qmp())?);
        args.option("-mon", "chardev=test-qmp,mode=control");
    }
    args.option("-serial", "chardev:console");
    args.option("-serial", "chardev:heartbeat");
    args.option("-chardev", server("qmp", &places.qmp)?);
    args.option("-mon", "chardev=qmp,mode=control");
    Ok(())
}

fn server(id: &str, path: &Path) -> Result<String> {
    let path = escaped(path)?;
    if path.len() > 107 {
        bail!("the socket's path is longer than 107 bytes: {path}");
    }
    Ok(format!("socket,id={id},path={path},server=on,wait=off"))
}

fn file_node(node: &str, path: &Path, read_only: bool) -> Result<String> {
    let path = text(path)?;
    let node = json!({
        "driver": "file", "node-name": node, "filename": path,
        "read-only": read_only, "discard": "unmap",
    });
    Ok(node.to_string())
}

fn text(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .with_context(|| format!("{path:?} is not UTF-8"))?
        .to_owned())
}

fn escaped(path: &Path) -> Result<String> {
    Ok(text(path)?.replace(',', ",,"))
}
