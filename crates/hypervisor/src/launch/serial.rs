//! Consoles: as many serial ports as before, each written to a file. The first can be written to as
//! well, where that is asked for.

use super::channels::{is_console, make_listener};
use super::error::LaunchError;
use super::options::{Options, escape};
use super::plan::{Work, utf8};

/// Devices that keep QEMU from adding its default serial port.
const SERIAL_DEVICES: &[&str] = &["isa-serial", "xen-console"];

/// Gives out what stands behind the consoles, one after the other.
struct Ends {
    log: String,
    socket: Option<String>,
    count: u32,
}

/// What stands behind one console.
struct End {
    log: String,
    /// Where it can be written to.
    socket: Option<String>,
}

impl Ends {
    /// The next one. A device on USB is unplugged as long as nobody is connected to a socket, so it
    /// is not `writable`.
    fn next(&mut self, writable: bool) -> End {
        self.count += 1;
        End {
            log: match self.count {
                1 => self.log.clone(),
                count => format!("{}.{count}", self.log),
            },
            socket: self.socket.take_if(|_| writable),
        }
    }
}

impl End {
    /// As the value of `-serial`.
    fn port(&self) -> String {
        match &self.socket {
            // After `file:` QEMU takes the rest as it stands: commas are not doubled.
            None => format!("file:{}", self.log),
            Some(socket) => format!(
                "unix:{},server=on,wait=off,logfile={}",
                escape(socket),
                escape(&self.log)
            ),
        }
    }

    /// As the rest of a character device.
    fn chardev(&self, options: &mut Options) {
        match &self.socket {
            None => {
                options.set("backend", "file");
                options.set("path", &self.log);
            }
            Some(socket) => {
                make_listener(options, socket);
                options.set("logfile", &self.log);
            }
        }
    }
}

/// Leads the consoles into files.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    let socket = work.request.console_socket.as_deref();
    let mut ends = Ends {
        log: utf8(&work.request.console_log)?.to_owned(),
        socket: socket.map(utf8).transpose()?.map(str::to_owned),
        count: 0,
    };
    for at in 0..work.line.args.len() {
        match work.line.args[at].name.as_str() {
            "serial" => port(work, at, &mut ends),
            "chardev" => chardev(work, at, &mut ends),
            _ => {}
        }
    }
    if has_default_port(work) {
        let end = ends.next(true);
        work.line.push("serial", end.port());
        work.change(format!("the default serial port writes to {}", end.log));
    }
    quiet_ports(work);
    Ok(())
}

fn port(work: &mut Work<'_>, at: usize, ends: &mut Ends) {
    let value = work.line.args[at].value.clone().unwrap_or_default();
    if value == "none" || value.starts_with("chardev:") {
        return;
    }
    let end = ends.next(true);
    work.line.args[at].value = Some(end.port());
    work.change(format!("-serial {value} writes to {}", end.log));
}

fn chardev(work: &mut Work<'_>, at: usize, ends: &mut Ends) {
    let mut options = work.line.args[at].options();
    let id = options.get("id").unwrap_or_default();
    if !is_console(work, &id) {
        return;
    }
    let devices = work.line.all("device");
    let on_usb = devices.iter().any(|(_, device)| {
        device.get("chardev").as_deref() == Some(&id)
            && device.get("driver").as_deref() == Some("usb-serial")
    });
    let end = ends.next(!on_usb);
    let shown = work.line.args[at].shown();
    options.keep_only("", |key| matches!(key, "backend" | "id" | "mux"));
    end.chardev(&mut options);
    work.line.args[at].value = Some(options.to_string());
    work.change(format!("{shown} writes to {}", end.log));
}

/// Whether QEMU adds a serial port of its own accord.
fn has_default_port(work: &Work<'_>) -> bool {
    let is_serial = |options: &Options| {
        let driver = options.get("driver").unwrap_or_default();
        SERIAL_DEVICES.contains(&driver.as_str())
            || options
                .keys()
                .iter()
                .any(|key| key.starts_with("isa-serial."))
    };
    !work.line.has("serial")
        && !work.line.has("nodefaults")
        && !["device", "global"]
            .iter()
            .flat_map(|name| work.line.all(name))
            .any(|(_, options)| is_serial(&options))
}

/// Parallel ports and debug consoles stay, and lead nowhere.
fn quiet_ports(work: &mut Work<'_>) {
    for name in ["parallel", "debugcon"] {
        for (at, _) in work.line.all(name) {
            let arg = &mut work.line.args[at];
            let value = arg.value.clone().unwrap_or_default();
            if matches!(value.as_str(), "none" | "null" | "vc") || value.starts_with("chardev:") {
                continue;
            }
            arg.value = Some("null".to_owned());
            work.change(format!("-{name} {value} leads nowhere"));
        }
    }
}
