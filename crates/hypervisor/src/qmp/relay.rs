//! Monitors that are reached through somebody else, such as libvirt.
//!
//! QEMU's own monitor is libvirt's there, and what is said to it goes through libvirt's daemon. A
//! relay is a process that speaks QMP on a socket pair and passes commands, file descriptors and
//! events on. It makes such a guest look like any other, to the pause guard and to undos too, and
//! it outlives the one who started it.
//!
//! Who starts relays says so once ([`start_by`]); addresses it does not know are paths of sockets.
//!
//! The greeting of a relay takes the place of QEMU's:
//! ```text
//! {"QMP": {}, "relay": {"pid": 4711, "uid": 64055}}        QEMU's process
//! {"relay": {"gone": true}}                                 the guest does not run
//! {"relay": {"error": "libvirt: …"}}                        it cannot be reached
//! ```

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use super::{Peer, QmpError};

/// Starts a relay to an address and returns our end of its socket; `None` where the address is
/// the path of a socket.
pub type Start = fn(&Path) -> Option<std::io::Result<UnixStream>>;

static START: OnceLock<Start> = OnceLock::new();

/// Says how relays are started, for the life of the process. The first call counts.
pub fn start_by(start: Start) {
    let _ = START.set(start);
}

/// Whether an address is one that a relay is started for: those of sockets are absolute paths.
pub(crate) fn is_address(path: &Path) -> bool {
    path.is_relative()
}

/// A relay to `path`, if it is no socket's.
pub(super) fn start(path: &Path) -> Option<std::io::Result<UnixStream>> {
    START.get().and_then(|start| start(path))
}

/// The guest's process, as the greeting of a relay names it.
pub(super) fn peer(greeting: &Value, path: &Path) -> Result<Peer, QmpError> {
    let relay = &greeting["relay"];
    if relay["gone"] == true {
        return Err(QmpError::Gone {
            path: path.to_owned(),
        });
    }
    if let Some(reason) = relay["error"].as_str() {
        return Err(QmpError::Relay {
            path: path.to_owned(),
            reason: reason.to_owned(),
        });
    }
    let number = |key: &str| relay[key].as_u64().and_then(|n| u32::try_from(n).ok());
    match (number("pid"), number("uid")) {
        (Some(pid), Some(uid)) if pid > 0 => Ok(Peer { pid, uid }),
        _ => Err(QmpError::Protocol("no greeting of a relay".into())),
    }
}
