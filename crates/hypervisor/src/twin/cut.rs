//! Cuts a QEMU off that another program started: its taps are joined to nothing, are down, and the
//! host would not hear them if somebody took them up.
//!
//! A tap that is down takes no frame from QEMU and gives it none.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::TwinError;
use super::promote::taps_of;
use crate::process;

/// Answer no request for an address (`arp_ignore` of the kernel's ip-sysctl).
const NEVER: &str = "8";

/// Cuts process `pid` off, before its processors run.
///
/// # Errors
/// [`TwinError::NotCutOff`]: a tap is joined to something, or cannot be taken down.
pub fn cut_off(pid: u32) -> Result<(), TwinError> {
    taps_of(pid).iter().try_for_each(|tap| {
        cut_tap(tap).map_err(|reason| TwinError::NotCutOff {
            tap: tap.clone(),
            reason,
        })
    })
}

fn cut_tap(tap: &str) -> Result<(), String> {
    let mut down = Command::new("ip");
    down.args(["link", "set", "dev", tap, "down"]);
    process::run(&mut down, "iproute2")?;
    let settings = [
        (format!("/proc/sys/net/ipv4/conf/{tap}/arp_ignore"), NEVER),
        (format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1"),
    ];
    for (path, value) in settings {
        // A host without that protocol does not speak it.
        if Path::new(&path).exists() {
            fs::write(&path, value).map_err(|error| format!("{path}: {error}"))?;
        }
    }
    let link = link(tap).ok_or("nothing is known of it")?;
    let flags = link["flags"].as_array();
    let up = flags.is_none_or(|flags| flags.iter().any(|flag| flag == "UP"));
    match (up, link["master"].as_str()) {
        (false, None) => Ok(()),
        (_, Some(master)) => Err(format!("it is joined to {master}")),
        (true, None) => Err("it does not go down".to_owned()),
    }
}

/// What `ip` tells of an interface. Not `/sys`, which may be that of another namespace.
pub(super) fn link(name: &str) -> Option<Value> {
    let mut command = Command::new("ip");
    command.args(["-json", "link", "show", "dev", name]);
    let output = command.stdin(Stdio::null()).output().ok()?;
    let mut links: Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(links.get_mut(0)?.take())
}
