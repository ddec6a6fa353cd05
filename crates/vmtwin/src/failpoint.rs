//! Failpoints: make a step fail, or end the process in it, in tests of debug builds.
//!
//! `VMTWIN_FAILPOINT=NAME=ACTION` where `NAME` is a step's name or its number (from 1), and
//! `ACTION` is `fail`, `kill` (SIGKILL to ourselves), `interrupt` (SIGINT to ourselves) or
//! `sleep:MS` (milliseconds).
//! `VMTWIN_STEPS=FILE` appends every step's name, so that a test can go through all of them.
//! Release builds contain none of it.

#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// A step that a test made fail.
#[derive(Debug, thiserror::Error)]
#[error("failpoint '{0}'")]
pub(crate) struct Injected(String);

/// Passes the step `name`, or fails where a test wants it.
#[cfg(not(debug_assertions))]
pub(crate) fn pass(_name: &str) -> Result<(), Injected> {
    Ok(())
}

/// Passes the step `name`, or fails where a test wants it.
#[cfg(debug_assertions)]
pub(crate) fn pass(name: &str) -> Result<(), Injected> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    note(name);
    let Ok(wanted) = std::env::var("VMTWIN_FAILPOINT") else {
        return Ok(());
    };
    let Some((at, action)) = wanted.rsplit_once('=') else {
        return Ok(());
    };
    if at != name && at != number.to_string() {
        return Ok(());
    }
    if let Some(ms) = action.strip_prefix("sleep:") {
        std::thread::sleep(std::time::Duration::from_millis(ms.parse().unwrap_or(0)));
        return Ok(());
    }
    let me = rustix::process::getpid();
    match action {
        "kill" => {
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            Ok(())
        }
        "interrupt" => {
            let _ = rustix::process::kill_process(me, rustix::process::Signal::INT);
            Ok(())
        }
        _ => Err(Injected(name.to_owned())),
    }
}

#[cfg(debug_assertions)]
fn note(name: &str) {
    use std::io::Write;
    let Some(path) = std::env::var_os("VMTWIN_STEPS") else {
        return;
    };
    if let Ok(mut file) = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
    {
        let _ = writeln!(file, "{name}");
    }
}
