//! Consoles: as many serial ports as before, each written to a file.

use super::channels::is_console;
use super::error::LaunchError;
use super::options::Options;
use super::plan::{Work, utf8};

/// Devices that keep QEMU from adding its default serial port.
const SERIAL_DEVICES: &[&str] = &["isa-serial", "xen-console"];

/// Leads the consoles into files.
pub(super) fn rewrite(work: &mut Work<'_>) -> Result<(), LaunchError> {
    let log = utf8(&work.request.console_log)?.to_owned();
    let mut count = 0;
    let mut next_log = || {
        count += 1;
        match count {
            1 => log.clone(),
            count => format!("{log}.{count}"),
        }
    };
    for at in 0..work.line.args.len() {
        match work.line.args[at].name.as_str() {
            "serial" => port(work, at, &mut next_log),
            "chardev" => chardev(work, at, &mut next_log),
            _ => {}
        }
    }
    if has_default_port(work) {
        let log = next_log();
        work.line.push("serial", format!("file:{log}"));
        work.change(format!("the default serial port writes to {log}"));
    }
    quiet_ports(work);
    Ok(())
}

fn port(work: &mut Work<'_>, at: usize, next_log: &mut impl FnMut() -> String) {
    let value = work.line.args[at].value.clone().unwrap_or_default();
    if value == "none" || value.starts_with("chardev:") {
        return;
    }
    let log = next_log();
    // After `file:` QEMU takes the rest as it stands: commas are not doubled.
    work.line.args[at].value = Some(format!("file:{log}"));
    work.change(format!("-serial {value} writes to {log}"));
}

fn chardev(work: &mut Work<'_>, at: usize, next_log: &mut impl FnMut() -> String) {
    let mut options = work.line.args[at].options();
    let id = options.get("id").unwrap_or_default();
    if !is_console(work, &id) {
        return;
    }
    let log = next_log();
    let shown = work.line.args[at].shown();
    options.keep_only("", |key| matches!(key, "backend" | "id" | "mux"));
    options.set("backend", "file");
    options.set("path", &log);
    work.line.args[at].value = Some(options.to_string());
    work.change(format!("{shown} writes to {log}"));
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
