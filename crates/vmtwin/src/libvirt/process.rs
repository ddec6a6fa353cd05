//! Which process a domain's QEMU is. libvirt has no call for it.
//!
//! libvirt writes its id to a file. Where that is elsewhere, the one process on this host that was
//! started with `-uuid UUID` is it; two of them are no answer, since anybody may start a process
//! with such arguments.

use std::path::PathBuf;

use vmtwin_hypervisor::process::{ProcessId, arguments, with_argument_that};

/// The QEMU of a domain that runs.
pub(super) fn of_domain(name: &str, uuid: &str) -> Option<ProcessId> {
    let written = pid_files(name).into_iter().find_map(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        let process = ProcessId::of(text.trim().parse().ok()?)?;
        is_of(process, uuid).then_some(process)
    });
    written.or_else(|| {
        let all = with_argument_that(|argument| argument == uuid);
        let mut all = all.into_iter().filter(|process| is_of(*process, uuid));
        let first = all.next()?;
        all.next().is_none().then_some(first)
    })
}

fn pid_files(name: &str) -> Vec<PathBuf> {
    let file = format!("{name}.pid");
    let mut files = vec![PathBuf::from("/run/libvirt/qemu").join(&file)];
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR") {
        let sessions = PathBuf::from(runtime).join("libvirt/qemu/run");
        files.push(sessions.join(&file));
    }
    files
}

fn is_of(process: ProcessId, uuid: &str) -> bool {
    let Ok(arguments) = arguments(process.pid) else {
        return false;
    };
    let pair = |pair: &[String]| pair[0] == "-uuid" && pair[1] == uuid;
    arguments.windows(2).any(pair)
}
