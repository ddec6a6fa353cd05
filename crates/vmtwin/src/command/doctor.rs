//! `vmtwin doctor`: whether this host has what backups need, and how to mend what it has not.
//!
//! Nothing is changed. Each check is a function that looks at one thing.

mod by_itself;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use rustix::fs::{Access, access, statvfs};
use serde::Serialize;

use crate::db::Db;
use crate::home::{Home, MAIN};
use crate::ui::{Ui, bytes, table};
use crate::{EXIT_FAILED, EXIT_WARNINGS};

/// Free space below which a busy guest's backup may run out of scratch.
const FREE_BYTES: u64 = 5 << 30;
/// Free space below which nothing will work.
const LEAST_FREE_BYTES: u64 = 256 << 20;
/// The first QEMU with a filter that gives a backup up instead of the guest
/// (`on-cbw-error=break-snapshot`).
const LEAST_QEMU: (u32, u32) = (7, 1);

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Works, with less.
    Warning,
    /// Backups do not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Check {
        Check {
            what,
            state: State::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn not(
        what: &'static str,
        state: State,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Check {
        Check {
            what,
            state,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Looks at everything. Exit code 3 with warnings, 1 where something backups need is missing.
pub(crate) fn run(home: &Home, ui: &Ui) -> Result<i32> {
    let mut checks = vec![qemu(), kvm(), userfaultfd(), tracing()];
    checks.extend(programs());
    checks.extend([space(home), catalog(home)]);
    checks.extend(repositories(home)?);
    checks.extend([libvirt(), reader(), clock()]);
    checks.extend(by_itself::checks(home));
    ui.result(&checks, || text(&checks))?;
    let worst = |state| checks.iter().any(|check| check.state == state);
    Ok(match (worst(State::Failed), worst(State::Warning)) {
        (true, _) => EXIT_FAILED,
        (false, true) => EXIT_WARNINGS,
        (false, false) => 0,
    })
}

fn text(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let state = match check.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "FAILED",
        };
        vec![state.to_owned(), check.what.to_owned(), check.found.clone()]
    };
    let rows: Vec<Vec<String>> = checks.iter().map(row).collect();
    let mut lines = vec![table(&["", "CHECK", "FOUND"], &rows)];
    for check in checks {
        if let Some(mend) = &check.mend {
            lines.push(format!("{}: {mend}", check.what));
        }
    }
    lines.join("\n")
}

/// First line of what a program prints.
fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// Whether a program is there; it need not run without arguments.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| access(folder.join(program), Access::EXEC_OK).is_ok())
}

fn qemu() -> Check {
    const WHAT: &str = "QEMU";
    let mend = "apt install qemu-system-x86 (Debian 12: from bookworm-backports)";
    let Some(line) = first_line("qemu-system-x86_64", &["--version"]) else {
        return Check::not(WHAT, State::Warning, "no qemu-system-x86_64", mend);
    };
    match version(&line) {
        Some(found) if found < LEAST_QEMU => Check::not(WHAT, State::Failed, line, mend),
        _ => Check::ok(WHAT, line),
    }
}

/// `QEMU emulator version 10.0.2 (…)`.
fn version(line: &str) -> Option<(u32, u32)> {
    let (_, rest) = line.split_once("version ")?;
    let mut parts = rest.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kvm() -> Check {
    const WHAT: &str = "KVM";
    let usable = access("/dev/kvm", Access::READ_OK | Access::WRITE_OK);
    match (Path::new("/dev/kvm").exists(), usable) {
        (true, Ok(())) => Check::ok(WHAT, "/dev/kvm opens"),
        (true, Err(_)) => Check::not(
            WHAT,
            State::Warning,
            "/dev/kvm is not for this user",
            "run as root, or join its group: usermod -aG kvm USER",
        ),
        (false, _) => Check::not(
            WHAT,
            State::Warning,
            "no /dev/kvm: twins and restored guests are emulated, which is slow",
            "turn virtualisation on in the firmware, and load kvm_intel or kvm_amd",
        ),
    }
}

/// What QEMU writes memory down with while the guest runs on.
fn userfaultfd() -> Check {
    const WHAT: &str = "userfaultfd";
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    match setting.as_deref().map(str::trim) {
        Ok("1") => Check::ok(WHAT, "for every user"),
        Ok(_) => Check::not(
            WHAT,
            State::Warning,
            "for root alone: memory of a QEMU that runs as another user cannot be captured",
            "sysctl vm.unprivileged_userfaultfd=1 (and a file in /etc/sysctl.d), or run QEMU as root",
        ),
        Err(_) => Check::not(
            WHAT,
            State::Failed,
            "this kernel has none: memory cannot be captured",
            "use a kernel with CONFIG_USERFAULTFD (every current distribution's has it)",
        ),
    }
}

/// What makes the pause short.
fn tracing() -> Check {
    const WHAT: &str = "ptrace";
    if !rustix::process::geteuid().is_root() {
        return Check::not(
            WHAT,
            State::Warning,
            "not root: a guest of another user is stopped for longer",
            "run vmtwin as root, or as the user that QEMU runs as",
        );
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Ok("3") => Check::not(
            WHAT,
            State::Warning,
            "forbidden on this host: guests are stopped for longer",
            "kernel.yama.ptrace_scope=2 or less, which takes a reboot",
        ),
        _ => Check::ok(WHAT, "allowed"),
    }
}

fn programs() -> Vec<Check> {
    let wanted = [
        ("qemu-img", "qemu-utils", State::Failed),
        ("qemu-nbd", "qemu-utils", State::Failed),
        ("setpriv", "util-linux", State::Failed),
        ("unshare", "util-linux", State::Failed),
        ("swtpm", "swtpm", State::Warning),
    ];
    let check = |(program, package, state): (&'static str, &str, State)| match is_there(program) {
        true => Check::ok(program, "there"),
        false => {
            let less = match state {
                State::Warning => "missing: guests with a TPM can't be started again",
                _ => "missing",
            };
            Check::not(program, state, less, format!("apt install {package}"))
        }
    };
    wanted.into_iter().map(check).collect()
}

/// Spool and scratch are in the home folder.
fn space(home: &Home) -> Check {
    const WHAT: &str = "space";
    let dir = home.dir();
    let Ok(found) = statvfs(dir) else {
        let found = format!("{} cannot be looked at", dir.display());
        return Check::not(WHAT, State::Failed, found, "give another --home");
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} free in {}", bytes(free), dir.display());
    let state = match free {
        0..LEAST_FREE_BYTES => State::Failed,
        LEAST_FREE_BYTES..FREE_BYTES => State::Warning,
        _ => return Check::ok(WHAT, text),
    };
    let mend = "what guests write during a backup is kept there: make room, or give another --home";
    Check::not(WHAT, state, text, mend)
}

fn catalog(home: &Home) -> Check {
    const WHAT: &str = "catalog";
    match Db::open(home) {
        Ok(db) => Check::ok(WHAT, db.place()),
        Err(error) => Check::not(
            WHAT,
            State::Failed,
            format!("{error:#}"),
            "look at its file or its server; vmtwin catalog show",
        ),
    }
}

/// The main one, and further ones.
fn repositories(home: &Home) -> Result<Vec<Check>> {
    const WHAT: &str = "repository";
    let mut checks = Vec::new();
    let mut opened = vec![(MAIN.to_owned(), home.repository(), State::Failed)];
    for (name, _) in home.named()? {
        let repository = home.open_named(&name);
        opened.push((name, repository, State::Warning));
    }
    for (name, repository, state) in opened {
        checks.push(match repository {
            Ok(repository) => Check::ok(WHAT, format!("{name} opens (id {:.8})", repository.id())),
            Err(error) => Check::not(
                WHAT,
                state,
                format!("{name}: {error:#}"),
                "make it with vmtwin init (further ones: vmtwin repo add), or bring it back",
            ),
        });
    }
    Ok(checks)
}

/// Needed for libvirt's guests only.
fn libvirt() -> Check {
    const WHAT: &str = "libvirt";
    const URI: &str = "qemu:///system";
    let connected = vmtwin_libvirt::Connection::open(URI).and_then(|c| c.version());
    match connected {
        Ok(version) => {
            let (major, minor) = (version / 1_000_000, version / 1000 % 1000);
            Check::ok(WHAT, format!("{major}.{minor} answers at {URI}"))
        }
        Err(vmtwin_libvirt::Error::Library(_)) => Check::ok(WHAT, "not installed, and not needed"),
        Err(error) => Check::not(
            WHAT,
            State::Warning,
            format!("{error}"),
            "only its guests need it: systemctl start libvirtd, or ask for the right to use it",
        ),
    }
}

/// What reads files out of snapshots.
fn reader() -> Check {
    const WHAT: &str = "file reader";
    match vmtwin_appliance::default_kernel() {
        Ok(kernel) => Check::ok(WHAT, kernel.display().to_string()),
        Err(_) => Check::not(
            WHAT,
            State::Warning,
            "no kernel with modules in /boot: files in snapshots cannot be listed",
            "apt install linux-image-cloud-amd64, or set VMTWIN_APPLIANCE_KERNEL and _MODULES",
        ),
    }
}

/// Points are named by it, and retention goes by it.
fn clock() -> Check {
    const WHAT: &str = "clock";
    let asked = first_line("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]);
    match asked.as_deref() {
        Some("yes") => Check::ok(WHAT, "synchronised"),
        Some(_) => Check::not(
            WHAT,
            State::Warning,
            "not synchronised: times of points may be wrong",
            "timedatectl set-ntp true, or see to chrony",
        ),
        None => Check::ok(WHAT, "not asked: no systemd runs here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared() {
        let line = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds)";
        assert_eq!(version(line), Some((10, 0)));
        assert!(version("QEMU emulator version 7.0.0").is_some_and(|v| v < LEAST_QEMU));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn every_problem_says_how_to_mend_it() {
        let checks = [qemu(), kvm(), userfaultfd(), tracing(), reader(), clock()];
        let all = checks.iter().chain(&programs()).all(|check| {
            (check.state == State::Ok) == check.mend.is_none() && !check.found.is_empty()
        });
        assert!(all, "{checks:?}");
    }
}
