//! Channels to the host: monitors, sockets, displays, shared folders.
//!
//! Every one of them may still serve the old guest. The devices stay; what stands behind them is
//! taken away.

use std::path::Path;

use super::blockers::refused;
use super::command_line::{Arg, CommandLine};
use super::error::LaunchError;
use super::network;
use super::options::Options;
use super::plan::{Work, utf8};
use super::request::Network;
use crate::machine::Machine;

/// Ways to control QEMU: the new one has a QMP socket of its own.
const CONTROL: &[&str] = &[
    "mon",
    "monitor",
    "qmp",
    "qmp-pretty",
    "gdb",
    "s",
    "qtest",
    "qtest-log",
];
/// Ways to look at the screen. The video device stays.
const DISPLAYS: &[&str] = &[
    "alt-grab",
    "ctrl-grab",
    "curses",
    "display",
    "full-screen",
    "no-frame",
    "no-quit",
    "portrait",
    "rotate",
    "sdl",
    "show-cursor",
    "spice",
    "vnc",
];
/// Back ends of a character device that reach nothing.
const HARMLESS: &[&str] = &[
    "memory", "msmouse", "null", "ringbuf", "testdev", "vc", "wctablet",
];
/// Devices that a console is behind.
const CONSOLES: &[&str] = &["isa-serial", "pci-serial", "usb-serial", "virtconsole"];

/// What the guest agent's port is called, by convention of the agent.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// Files that libvirt opened for character devices, a log of a console: a descriptor can't be had
/// again, and what was written to stays the old guest's. Sets that anything else uses stay, and are
/// refused.
pub(super) fn descriptors(work: &mut Work<'_>) {
    let mut dropped = Vec::new();
    for (at, set) in work.line.all("add-fd") {
        let path = format!("/dev/fdset/{}", set.get("set").unwrap_or_default());
        let uses = |arg: &Arg| arg.options().entries().iter().any(|(_, v)| *v == path);
        let users = work.line.args.iter().enumerate();
        let users: Vec<usize> = users.filter(|(_, arg)| uses(arg)).map(|(n, _)| n).collect();
        let chardevs = |n: &usize| work.line.args[*n].name == "chardev";
        if users.is_empty() || !users.iter().all(chardevs) {
            continue;
        }
        for user in users {
            let mut options = work.line.args[user].options();
            options.keep_only("", |key| matches!(key, "backend" | "id" | "mux"));
            options.set("backend", "null");
            work.line.args[user].value = Some(options.to_string());
        }
        let shown = work.line.args[at].shown();
        work.change(format!("{shown} left out: the file is the old guest's"));
        dropped.push(at);
    }
    work.line.remove_at(&dropped);
}

/// Takes the channels away.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    for name in CONTROL {
        work.drop_all(name, "a QMP socket of its own takes its place");
    }
    displays(work);
    audio(work);
    remove_unused_chardevs(work);
    for (at, options) in work.line.all("chardev") {
        chardev(work, at, options)?;
    }
    tpm(work)?;
    shared_folders(work);
    network::vsock(work)
}

fn displays(work: &mut Work<'_>) {
    let gl = work.line.all("device").iter().any(|(_, device)| {
        let driver = device.get("driver").unwrap_or_default();
        driver.ends_with("-gl") || driver.ends_with("-gl-pci")
    });
    for name in DISPLAYS {
        work.drop_all(name, "nobody looks at this machine");
    }
    if gl {
        work.line.push("display", "egl-headless");
        work.warn("the video device draws with OpenGL, so the host needs it without a display");
    } else if !work.line.has("nographic") {
        work.line.push("display", "none");
    }
}

fn audio(work: &mut Work<'_>) {
    for name in ["audiodev", "audio"] {
        for (at, mut options) in work.line.all(name) {
            if matches!(options.get("driver").as_deref(), None | Some("none")) {
                continue;
            }
            let shown = work.line.args[at].shown();
            options.keep_only("", |key| matches!(key, "driver" | "id" | "model"));
            options.set("driver", "none");
            work.line.args[at].value = Some(options.to_string());
            work.change(format!("{shown} is silent now"));
        }
    }
}

fn remove_unused_chardevs(work: &mut Work<'_>) {
    let unused: Vec<usize> = (work.line.all("chardev").into_iter())
        .filter(|(at, options)| {
            let id = options.get("id").unwrap_or_default();
            !work.line.refers_to(&id, *at)
        })
        .map(|(at, _)| at)
        .collect();
    for at in &unused {
        let shown = work.line.args[*at].shown();
        work.change(format!("{shown} left out: nothing uses it any more"));
    }
    work.line.remove_at(&unused);
}

fn chardev(work: &mut Work<'_>, at: usize, mut options: Options) -> Result<(), LaunchError> {
    let id = options.get("id").unwrap_or_default();
    let backend = options.get("backend").unwrap_or_default();
    if HARMLESS.contains(&backend.as_str()) || is_console(work, &id) || is_tpm(work, &id) {
        return Ok(());
    }
    if let Some(socket) = work.request.agent_socket.as_deref()
        && is_agent(work, &id)
    {
        let shown = work.line.args[at].shown();
        options.keep_only("", |key| matches!(key, "backend" | "id"));
        make_listener(&mut options, utf8(socket)?);
        work.line.args[at].value = Some(options.to_string());
        work.change(format!("{shown} listens on {}", socket.display()));
        return Ok(());
    }
    if work.request.network == Network::Original && can_stay(work, &options, &backend) {
        return Ok(());
    }
    let shown = work.line.args[at].shown();
    options.keep_only("", |key| matches!(key, "backend" | "id" | "mux"));
    options.set("backend", "null");
    work.line.args[at].value = Some(options.to_string());
    work.change(format!(
        "{shown} leads nowhere: the old one may serve the old guest"
    ));
    Ok(())
}

/// Makes a character device a socket that QEMU listens on, and waits for nobody.
pub(super) fn make_listener(options: &mut Options, socket: &str) {
    options.set("backend", "socket");
    options.set("path", socket);
    options.set_flag("server", true);
    options.set_flag("wait", false);
}

/// A socket that QEMU makes itself, in a folder that is there.
fn can_stay(work: &Work<'_>, options: &Options, backend: &str) -> bool {
    let path = options.get("path").map(|path| work.absolute(&path));
    let folder = path.as_deref().and_then(|path| Path::new(path).parent());
    backend == "socket"
        && (options.is_on("server") || options.get("server").is_none())
        && options.get("fd").is_none()
        && folder.is_some_and(Path::exists)
}

/// Whether a console is behind this character device.
pub(super) fn is_console(work: &Work<'_>, id: &str) -> bool {
    work.line.args.iter().any(|arg| match arg.name.as_str() {
        "serial" => arg.value.as_deref() == Some(&format!("chardev:{id}")),
        "device" => {
            let device = arg.options();
            device.get("chardev").as_deref() == Some(id)
                && device
                    .get("driver")
                    .is_some_and(|driver| CONSOLES.contains(&driver.as_str()))
        }
        _ => false,
    })
}

/// Whether the guest agent is behind this character device.
fn is_agent(work: &Work<'_>, id: &str) -> bool {
    work.line.all("device").into_iter().any(|(_, device)| {
        device.get("chardev").as_deref() == Some(id)
            && device.get("driver").as_deref() == Some("virtserialport")
            && device.get("name").as_deref() == Some(AGENT_PORT)
    })
}

fn is_tpm(work: &Work<'_>, id: &str) -> bool {
    let mut tpms = work.line.all("tpmdev").into_iter();
    tpms.any(|(_, tpm)| tpm.get("chardev").as_deref() == Some(id))
}

/// The socket behind which the guest agent is, where QEMU listens on one.
#[must_use]
pub fn agent_socket(machine: &Machine) -> Option<std::path::PathBuf> {
    let line = CommandLine::parse(&machine.args)?;
    let port = line.all("device").into_iter().find(|(_, device)| {
        device.get("driver").as_deref() == Some("virtserialport")
            && device.get("name").as_deref() == Some(AGENT_PORT)
    });
    let id = port?.1.get("chardev")?;
    let chardevs = line.all("chardev").into_iter();
    let mut sockets = chardevs.filter(|(_, chardev)| {
        let server = chardev.is_on("server");
        server && chardev.get("backend").as_deref() == Some("socket")
    });
    let found = sockets.find(|(_, chardev)| chardev.get("id").as_deref() == Some(&id));
    let path = std::path::PathBuf::from(found?.1.get("path")?);
    path.is_absolute().then_some(path)
}

/// Whether the machine has a TPM that an emulator (swtpm) makes, so that a plan for it needs
/// [`LaunchRequest::tpm_socket`](super::LaunchRequest::tpm_socket).
#[must_use]
pub fn has_tpm_emulator(machine: &Machine) -> bool {
    let tpms = CommandLine::parse(&machine.args).map(|line| line.all("tpmdev"));
    tpms.into_iter().flatten().any(|(_, tpm)| is_emulator(&tpm))
}

fn is_emulator(tpm: &Options) -> bool {
    tpm.get("type").as_deref() == Some("emulator")
}

fn tpm(work: &mut Work<'_>) -> Result<(), LaunchError> {
    for (at, tpm) in work.line.all("tpmdev") {
        let shown = work.line.args[at].shown();
        if !is_emulator(&tpm) {
            return Err(refused(
                &shown,
                "it hands the host's TPM to one guest",
                "start the machine by hand without it",
            ));
        }
        let Some(socket) = work.request.tpm_socket.as_deref() else {
            return Err(refused(
                &shown,
                "a TPM serves one guest, and holds state of its own",
                "start a TPM emulator (swtpm) on the restored TPM state and give its socket",
            ));
        };
        let socket = utf8(socket)?.to_owned();
        for (at, mut options) in work.line.all("chardev") {
            if options.get("id") == tpm.get("chardev") {
                options.keep_only("", |key| matches!(key, "backend" | "id"));
                options.set("backend", "socket");
                options.set("path", &socket);
                work.line.args[at].value = Some(options.to_string());
                work.change(format!("{shown} uses the TPM emulator at {socket}"));
            }
        }
    }
    Ok(())
}

/// 9p folders: the device stays, the folder is an empty one that QEMU makes up.
fn shared_folders(work: &mut Work<'_>) {
    for name in ["fsdev", "virtfs"] {
        for (at, mut options) in work.line.all(name) {
            let shown = work.line.args[at].shown();
            if work.request.network == Network::Original {
                work.warn(format!(
                    "{shown} is shared with whoever uses it on the host"
                ));
                continue;
            }
            options.keep_only("", |key| matches!(key, "fsdriver" | "id" | "mount_tag"));
            options.set("fsdriver", "synth");
            work.line.args[at].value = Some(options.to_string());
            work.change(format!(
                "{shown} is an empty folder: the old one belongs to the host"
            ));
        }
    }
}
