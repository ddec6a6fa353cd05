//! Promotion: a standby twin takes its guest's place, with the guest's disks as they were at the
//! point and the guest's network.
//!
//! ```text
//!   guest gone ─► scratch over the guest's image ─► drive of every device ─► taps to their bridges
//!        ─► resume ─► announce
//! ```
//! Until then a standby has blank disks and taps that lead nowhere. Whoever promotes has made sure
//! that the guest does not run.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{Twin, TwinError, cut};
use crate::capture::PointImage;
use crate::launch::Tap;
use crate::process;

/// How a tap of a standby is to be joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Its name in the twin's network namespace.
    tap: String,
    /// Its name on the host.
    name: String,
    /// The bridge it goes to; `None` where nobody knows.
    pub bridge: Option<String>,
}

/// Finds out where the taps of guest `pid` are joined, for those that stand in for them. `tag`
/// makes names of their own.
#[must_use]
pub fn joins(taps: &[Tap], pid: u32, tag: &str) -> Vec<Join> {
    let open = taps_of(pid);
    let join = |(number, tap): (usize, &Tap)| {
        let old = tap.old_name.as_ref().or(open.get(number));
        let master = old.and_then(|name| master_of(name));
        Join {
            tap: tap.name.clone(),
            name: format!("vt{tag}{number}"),
            bridge: tap.bridge.clone().or(master),
        }
    };
    taps.iter().enumerate().map(join).collect()
}

/// The bridge that an interface is on.
fn master_of(name: &str) -> Option<String> {
    Some(cut::link(name)?["master"].as_str()?.to_owned())
}

/// Names of the taps that a process has open, in the order of their descriptors.
pub(super) fn taps_of(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let mut fds: Vec<(u32, String)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            let name = text.lines().find_map(|line| line.strip_prefix("iff:"))?;
            Some((fd, name.trim().to_owned()))
        })
        .collect();
    fds.sort();
    fds.dedup_by(|a, b| a.1 == b.1);
    fds.into_iter().map(|(_, name)| name).collect()
}

impl Twin {
    /// Takes the guest's place. The guest's process is gone, and fenced where it could come back.
    /// Returns what the user should know: network devices that could not be joined do not keep the
    /// machine from running.
    ///
    /// # Errors
    /// A disk or the resume failed; it stands still then.
    pub fn promote(
        &mut self,
        images: &[PointImage],
        joins: &[Join],
    ) -> Result<Vec<String>, TwinError> {
        for (number, image) in images.iter().enumerate() {
            rebase(image)?;
            let node = format!("standby-{number}");
            self.execute(
                "blockdev-add",
                json!({"driver": "qcow2", "node-name": node, "discard": "unmap",
                       "file": {"driver": "file", "filename": image.scratch}}),
            )?;
            let drive = json!({"path": image.disk.qdev, "property": "drive", "value": node});
            self.execute("qom-set", drive)?;
        }
        let joined = joins.iter().map(|join| self.join(join));
        let warnings = joined.filter_map(Result::err).collect();
        self.execute("cont", Value::Null)?;
        if !joins.is_empty() {
            let rounds = json!({"initial": 50, "max": 550, "rounds": 5, "step": 100});
            self.execute("announce-self", rounds)?;
        }
        Ok(warnings)
    }

    /// Leaves it running.
    pub fn keep(mut self) {
        self.armed = false;
    }

    /// Moves a tap out of the twin's namespace into ours, and onto its bridge. An error is a text
    /// for people.
    fn join(&self, join: &Join) -> Result<(), String> {
        let (tap, name) = (join.tap.as_str(), join.name.as_str());
        let Some(bridge) = &join.bridge else {
            return Err(format!(
                "the network device on {tap} is joined to nothing, since the bridge of the guest's \
                 is not known"
            ));
        };
        let namespace = format!("--net=/proc/{}/ns/net", self.process.pid);
        let ours = std::process::id().to_string();
        let inside = ["ip", "link", "set", tap, "netns", &ours, "name", name];
        let mut moved = Command::new("nsenter");
        moved.arg(namespace).arg("--").args(inside);
        let mut joined = Command::new("ip");
        joined.args(["link", "set", name, "master", bridge, "up"]);
        process::run(&mut moved, "util-linux")
            .and_then(|()| process::run(&mut joined, "iproute2"))
            .map_err(|reason| format!("the network device on {tap} is not on {bridge}: {reason}"))
    }
}

/// Puts the guest's image under the scratch image.
fn rebase(image: &PointImage) -> Result<(), TwinError> {
    let mut command = Command::new("qemu-img");
    command.args([
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-F",
        &image.disk.format,
        "-b",
    ]);
    command.arg(&image.disk.address).arg(&image.scratch);
    process::run(&mut command, "qemu-utils").map_err(|reason| TwinError::Promotion {
        disk: image.disk.id.clone(),
        reason,
    })
}
