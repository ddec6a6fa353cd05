//! Memory capture: settings, the socket QEMU writes to, and the wait until pages flow.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::{Value, json};

use super::CaptureError;
use crate::qmp::Qmp;
use crate::spool::{Spool, SpoolOptions};
use crate::undo::wait_until_cleaned_up;

/// Send buffer asked for, bytes; the kernel caps it at `net.core.wmem_max`.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Capabilities that must be off beside a background snapshot.
const INCOMPATIBLE: [&str; 13] = [
    "multifd",
    "postcopy-ram",
    "dirty-bitmaps",
    "return-path",
    "auto-converge",
    "release-ram",
    "xbzrle",
    "validate-uuid",
    "zero-copy-send",
    "pause-before-switchover",
    "late-block-activate",
    "mapped-ram",
    "x-ignore-shared",
];

/// Settings of migration as they were, and as the capture needs them.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) before: Vec<(String, bool)>,
    pub(crate) max_bandwidth: u64,
}

impl Settings {
    /// Reads what would be changed; refuses while a migration is under way.
    pub(crate) fn read(qmp: &mut Qmp) -> Result<Settings, CaptureError> {
        let status = qmp.execute("query-migrate", Value::Null)?;
        if let Some(busy @ ("setup" | "active" | "device" | "postcopy-active" | "cancelling")) =
            status["status"].as_str()
        {
            return Err(CaptureError::MigrationBusy {
                status: busy.to_owned(),
            });
        }
        wait_until_cleaned_up(qmp)?;
        let all = qmp.execute("query-migrate-capabilities", Value::Null)?;
        let mut before = Vec::new();
        for capability in all.as_array().into_iter().flatten() {
            let name = capability["capability"].as_str().unwrap_or_default();
            let state = capability["state"].as_bool().unwrap_or(false);
            let snapshot = name == "background-snapshot";
            if snapshot || (state && INCOMPATIBLE.contains(&name)) {
                // Never put our own capability back on: a crash may have left it.
                before.push((name.to_owned(), state && !snapshot));
            }
        }
        let parameters = qmp.execute("query-migrate-parameters", Value::Null)?;
        Ok(Settings {
            before,
            max_bandwidth: parameters["max-bandwidth"].as_u64().unwrap_or(0),
        })
    }

    /// Sets what the capture needs.
    pub(crate) fn apply(&self, qmp: &mut Qmp) -> Result<(), CaptureError> {
        let mut wanted: Vec<Value> = Vec::new();
        for (name, _) in self
            .before
            .iter()
            .filter(|(n, _)| n != "background-snapshot")
        {
            wanted.push(json!({"capability": name, "state": false}));
        }
        wanted.push(json!({"capability": "background-snapshot", "state": true}));
        qmp.execute("migrate-set-capabilities", json!({"capabilities": wanted}))
            .map_err(|source| CaptureError::MemoryRefused { source })?;
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
        Ok(())
    }
}

/// A stream that QEMU will write, and its way into the spool.
pub(crate) struct Stream {
    pub(crate) spool: Spool,
    pub(crate) inode: u64,
}

/// Name under which QEMU holds the stream's descriptor.
pub(crate) const FD_NAME: &str = "vmtwin-memory";

/// Makes a socket pair, gives one end to QEMU and the other to a new spool.
pub(crate) fn open_stream(qmp: &mut Qmp, options: SpoolOptions) -> Result<Stream, CaptureError> {
    let (theirs, ours): (OwnedFd, OwnedFd) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| CaptureError::Io(e.into()))?;
    sockopt::set_socket_send_buffer_size(&theirs, SOCKET_BUFFER_BYTES)
        .map_err(|e| CaptureError::Io(e.into()))?;
    let inode = rustix::fs::fstat(&theirs)
        .map_err(|e| CaptureError::Io(e.into()))?
        .st_ino;
    let spool = Spool::start(ours, options)?;
    qmp.execute_with_fd("getfd", json!({"fdname": FD_NAME}), theirs.as_fd())?;
    Ok(Stream { spool, inode })
}

/// Waits until QEMU has sent a page: memory is write-protected and the guest may go on.
///
/// The page counters say so, not `transferred`, which counts the stream's head too. The answer
/// itself is a round trip through QEMU's main loop, after which what the snapshot thread has
/// scheduled there is done.
pub(crate) fn wait_for_first_page(qmp: &mut Qmp, limit: Duration) -> Result<(), CaptureError> {
    let end = Instant::now() + limit;
    loop {
        let status = qmp.execute("query-migrate", Value::Null)?;
        let pages = ["normal", "duplicate"]
            .iter()
            .filter_map(|k| status["ram"][k].as_u64());
        if pages.sum::<u64>() > 0 {
            return Ok(());
        }
        if let Some(reason) = failure(&status) {
            return Err(CaptureError::MemoryFailed { reason });
        }
        if Instant::now() > end {
            return Err(CaptureError::MemoryFailed {
                reason: "no page was sent in time".into(),
            });
        }
    }
}

/// Waits for the migration's end.
pub(crate) fn wait_for_end(
    qmp: &mut Qmp,
    limit: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), CaptureError> {
    let end = Instant::now() + limit;
    loop {
        let status = qmp.execute("query-migrate", Value::Null)?;
        match status["status"].as_str() {
            Some("completed" | "none") | None => return Ok(()),
            _ => {}
        }
        if let Some(reason) = failure(&status) {
            return Err(CaptureError::MemoryFailed { reason });
        }
        if cancelled() {
            return Err(CaptureError::Cancelled);
        }
        if Instant::now() > end {
            return Err(CaptureError::MemoryFailed {
                reason: "deadline passed".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn failure(status: &Value) -> Option<String> {
    let state = status["status"].as_str()?;
    matches!(state, "failed" | "cancelled" | "cancelling").then(|| {
        let detail = status["error-desc"].as_str().unwrap_or("no reason given");
        format!("QEMU's snapshot is {state}: {detail}")
    })
}
