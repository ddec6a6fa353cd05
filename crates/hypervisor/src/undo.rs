//! Undo: everything a capture does to a guest or leaves in the file system, as a value that can be
//! written down before it is done and applied by another process after a crash.
//!
//! An undo never trusts memory of what was: it looks at the live block graph and removes what
//! bears our names. So it may be applied twice, before the thing was done, or after somebody
//! (libvirt) changed the graph under our filter. A guest whose process is gone has nothing left to
//! undo, and a process that is another one than was captured is left alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bitmap;
use crate::process::{self, ProcessId};
use crate::qmp::{Qmp, QmpError};

/// How long to wait for a monitor when undoing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process that was killed may take to vanish.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// A guest's process and the way to talk to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRef {
    /// Its QMP socket.
    pub qmp: PathBuf,
    /// The process that was captured.
    pub process: ProcessId,
}

impl GuestRef {
    /// The guest behind a connection; `None` if its process is gone.
    #[must_use]
    pub fn of(qmp: &Qmp) -> Option<GuestRef> {
        Some(GuestRef {
            qmp: qmp.path().to_owned(),
            process: ProcessId::of(qmp.peer().pid)?,
        })
    }
}

/// One thing to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Resume a guest that we paused.
    Resume {
        /// The guest.
        guest: GuestRef,
    },
    /// Stop our migration and put its settings back.
    Migration {
        /// The guest.
        guest: GuestRef,
        /// Capabilities as they were: name, value.
        capabilities: Vec<(String, bool)>,
        /// `max-bandwidth` as it was, bytes per second.
        max_bandwidth: u64,
    },
    /// Take the filter off a disk and remove its nodes.
    Disk {
        /// The guest.
        guest: GuestRef,
        /// The device's path in the object tree.
        qdev: String,
        /// Our nodes, outermost first: access, filter, scratch.
        access_node: String,
        /// The copy-before-write filter.
        filter_node: String,
        /// The scratch image.
        scratch_node: String,
    },
    /// Stop the NBD server that we started (removes its exports).
    NbdServer {
        /// The guest.
        guest: GuestRef,
        /// Our exports' ids.
        exports: Vec<String>,
    },
    /// Take a set of file descriptors back that QEMU holds for us.
    FdSet {
        /// The guest.
        guest: GuestRef,
        /// The set's id.
        id: u64,
    },
    /// Thaw file systems that the guest's agent froze for us.
    Thaw {
        /// The guest.
        guest: GuestRef,
        /// Where its agent is.
        agent: PathBuf,
    },
    /// Remove a dirty bitmap.
    Bitmap {
        /// The guest.
        guest: GuestRef,
        /// The block node it lies on.
        node: String,
        /// Its name.
        name: String,
    },
    /// Kill a process that we started, such as a twin.
    Process {
        /// A path of ours that only its command line holds.
        argument: PathBuf,
    },
    /// Delete a file or a folder of ours.
    DeletePath {
        /// The path; below a folder of ours.
        path: PathBuf,
    },
}

/// Why something could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// QEMU did not answer or refused.
    #[error("could not undo {what}")]
    Qmp {
        /// What was to be undone.
        what: &'static str,
        /// Why not.
        source: QmpError,
    },
    /// A file could not be deleted.
    #[error("could not delete {path}")]
    Delete {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A process could not be killed.
    #[error("could not kill the process that uses {argument}")]
    Kill {
        /// What its command line holds.
        argument: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The guest's file systems may be frozen still.
    #[error(
        "the guest's agent could not be told to thaw its file systems; if it writes nothing, restart \
         its agent or the guest"
    )]
    Thaw {
        /// Why not.
        source: std::io::Error,
    },
    /// The guest is still not running.
    #[error("the guest stays {state} after it was told to go on")]
    StillPaused {
        /// QEMU's word for its state.
        state: String,
    },
}

impl Undo {
    /// What it is, in a few words for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Undo::Resume { .. } => "resume the guest".into(),
            Undo::Migration { .. } => "end the memory capture".into(),
            Undo::Disk { filter_node, .. } => format!("remove filter {filter_node}"),
            Undo::NbdServer { .. } => "stop the NBD exports".into(),
            Undo::FdSet { id, .. } => format!("take file set {id} back"),
            Undo::Thaw { .. } => "thaw the guest's file systems".into(),
            Undo::Bitmap { name, node, .. } => format!("remove bitmap {name} of {node}"),
            Undo::Process { argument } => format!("end the process on {}", argument.display()),
            Undo::DeletePath { path } => format!("delete {}", path.display()),
        }
    }

    /// Applies it over a connection of its own.
    ///
    /// # Errors
    /// See [`UndoError`]; what could not be undone may be tried again.
    pub fn apply(&self) -> Result<(), UndoError> {
        match self.guest() {
            None => self.apply_with(None),
            Some(guest) if !guest.process.is_alive() => Ok(()),
            Some(_) if matches!(self, Undo::Thaw { .. }) => self.apply_with(None),
            Some(guest) => match Qmp::connect(&guest.qmp, CONNECT_TIMEOUT) {
                Ok(mut qmp) => self.apply_with(Some(&mut qmp)),
                Err(error) if error.is_gone() && !guest.process.is_alive() => Ok(()),
                Err(source) => Err(UndoError::Qmp {
                    what: self.noun(),
                    source,
                }),
            },
        }
    }

    /// Applies it over a connection that is open already.
    ///
    /// # Errors
    /// See [`UndoError`].
    pub fn apply_with(&self, qmp: Option<&mut Qmp>) -> Result<(), UndoError> {
        match self {
            Undo::DeletePath { path } => return delete(path),
            Undo::Process { argument } => return kill(argument),
            Undo::Thaw { guest, agent } => return thaw(guest, agent),
            _ => {}
        }
        let Some(qmp) = qmp else { return self.apply() };
        let outcome = match self {
            Undo::Resume { .. } => return resume(qmp),
            Undo::Migration {
                capabilities,
                max_bandwidth,
                ..
            } => end_migration(qmp, capabilities, *max_bandwidth),
            Undo::Disk {
                qdev,
                access_node,
                filter_node,
                scratch_node,
                ..
            } => remove_filter(qmp, qdev, access_node, filter_node, scratch_node),
            Undo::NbdServer { exports, .. } => stop_nbd(qmp, exports),
            // Refused where there is none (any more).
            Undo::FdSet { id, .. } => {
                ignore_refusal(qmp.execute("remove-fd", json!({"fdset-id": id})))
            }
            Undo::Bitmap { node, name, .. } => bitmap::remove(qmp, node, name),
            Undo::Thaw { .. } | Undo::Process { .. } | Undo::DeletePath { .. } => Ok(()),
        };
        match outcome {
            Err(error) if error.is_gone() => Ok(()),
            Err(source) => Err(UndoError::Qmp {
                what: self.noun(),
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// The guest it concerns, if any.
    #[must_use]
    pub fn guest(&self) -> Option<&GuestRef> {
        match self {
            Undo::Resume { guest }
            | Undo::Migration { guest, .. }
            | Undo::Disk { guest, .. }
            | Undo::NbdServer { guest, .. }
            | Undo::FdSet { guest, .. }
            | Undo::Thaw { guest, .. }
            | Undo::Bitmap { guest, .. } => Some(guest),
            Undo::Process { .. } | Undo::DeletePath { .. } => None,
        }
    }

    fn noun(&self) -> &'static str {
        match self {
            Undo::Resume { .. } => "the pause",
            Undo::Migration { .. } => "the memory capture",
            Undo::Disk { .. } => "a disk's filter",
            Undo::NbdServer { .. } => "the NBD exports",
            Undo::FdSet { .. } => "a set of files",
            Undo::Thaw { .. } => "frozen file systems",
            Undo::Bitmap { .. } => "a dirty bitmap",
            Undo::Process { .. } => "a process",
            Undo::DeletePath { .. } => "a file",
        }
    }
}

fn thaw(guest: &GuestRef, agent: &Path) -> Result<(), UndoError> {
    let thawed = crate::agent::thaw(agent, || guest.process.is_alive());
    thawed.map_err(|source| UndoError::Thaw { source })
}

/// Makes a guest that we paused run. Asks more than once: a migration that ends badly puts the
/// guest back into the state it had when the memory capture began, which is paused.
fn resume(qmp: &mut Qmp) -> Result<(), UndoError> {
    let qmp_error = |source| UndoError::Qmp {
        what: "the pause",
        source,
    };
    let mut state = String::new();
    let mut quiet = 0;
    for _ in 0..100 {
        state = match crate::inspect::run_state(qmp) {
            Ok(state) => state,
            Err(error) if error.is_gone() => return Ok(()),
            Err(error) => return Err(qmp_error(error)),
        };
        if state == "paused" {
            quiet = 0;
            match qmp.execute("cont", Value::Null) {
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(error) if error.is_gone() => return Ok(()),
                Err(error) => return Err(qmp_error(error)),
            }
        } else if !matches!(state.as_str(), "finish-migrate" | "save-vm" | "postmigrate") {
            quiet += 1;
            if quiet == 3 || !migration_active(qmp).unwrap_or(false) {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(UndoError::StillPaused { state })
}

fn migration_active(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let status = qmp.execute("query-migrate", Value::Null)?;
    Ok(matches!(
        status["status"].as_str(),
        Some("setup" | "active" | "cancelling" | "device" | "pre-switchover")
    ))
}

fn end_migration(
    qmp: &mut Qmp,
    capabilities: &[(String, bool)],
    max_bandwidth: u64,
) -> Result<(), QmpError> {
    cancel_migration(qmp)?;
    let states: Vec<Value> = capabilities
        .iter()
        .map(|(name, state)| json!({"capability": name, "state": state}))
        .collect();
    if !states.is_empty() {
        qmp.execute("migrate-set-capabilities", json!({"capabilities": states}))?;
        qmp.execute(
            "migrate-set-parameters",
            json!({"max-bandwidth": max_bandwidth}),
        )?;
    }
    Ok(())
}

/// Cancels a migration, if one is under way, and waits until QEMU has cleaned up after it.
pub(crate) fn cancel_migration(qmp: &mut Qmp) -> Result<(), QmpError> {
    if migration_active(qmp)? {
        qmp.execute("migrate_cancel", Value::Null)?;
    }
    wait_until(|| Ok(!migration_active(qmp)?))?;
    wait_until_cleaned_up(qmp)
}

/// Waits until QEMU has cleaned up after the last migration.
///
/// Its status says `failed` or `completed` a little earlier, and a migration begun in between ends
/// QEMU with a failed assertion (`yank_unregister_instance`, seen with 10.0.2). The list of
/// yankable instances holds `migration` until the clean-up is done.
pub(crate) fn wait_until_cleaned_up(qmp: &mut Qmp) -> Result<(), QmpError> {
    wait_until(|| {
        let instances = qmp.execute("query-yank", Value::Null)?;
        Ok(!instances
            .as_array()
            .into_iter()
            .flatten()
            .any(|i| i["type"] == "migration"))
    })
}

fn stop_nbd(qmp: &mut Qmp, ours: &[String]) -> Result<(), QmpError> {
    let exports = qmp.execute("query-block-exports", Value::Null)?;
    let ids: Vec<&str> = exports
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["id"].as_str())
        .collect();
    let foreign = ids.iter().any(|id| !ours.iter().any(|o| o == id));
    for id in ids.iter().filter(|id| ours.iter().any(|o| o == *id)) {
        ignore_refusal(qmp.execute("block-export-del", json!({"id": id, "mode": "hard"})))?;
    }
    if !foreign {
        ignore_refusal(qmp.execute("nbd-server-stop", Value::Null))?;
    }
    wait_until(|| {
        let left = qmp.execute("query-block-exports", Value::Null)?;
        Ok(!left
            .as_array()
            .into_iter()
            .flatten()
            .any(|e| ours.iter().any(|o| e["id"].as_str() == Some(o))))
    })
}

fn wait_until(mut done: impl FnMut() -> Result<bool, QmpError>) -> Result<(), QmpError> {
    for _ in 0..250 {
        if done()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Puts the drive on whatever lies under the filter *now*, then removes our nodes.
fn remove_filter(
    qmp: &mut Qmp,
    qdev: &str,
    access: &str,
    filter: &str,
    scratch: &str,
) -> Result<(), QmpError> {
    let graph = Graph::query(qmp)?;
    if graph.has(filter) {
        if graph.has(access) {
            delete_node(qmp, access)?;
        }
        let child = graph.child_of(filter, "file");
        if let Some(child) = &child
            && root_of_device(qmp, qdev)?.as_deref() == Some(filter)
        {
            qmp.execute(
                "qom-set",
                json!({"path": qdev, "property": "drive", "value": child}),
            )?;
        }
        delete_node(qmp, filter)?;
        if let Some(child) = child.filter(|_| qmp.is_relayed()) {
            delete_given_up(qmp, &child)?;
        }
    }
    if graph.has(scratch) {
        delete_node(qmp, scratch)?;
    }
    Ok(())
}

/// Deletes what is left of a disk that libvirt detached meanwhile: it gives a disk's nodes up when
/// the device is gone, and could not delete them while our filter stood on them. Their image would
/// stay locked for as long as QEMU runs.
fn delete_given_up(qmp: &mut Qmp, root: &str) -> Result<(), QmpError> {
    for node in Graph::query(qmp)?.below(root) {
        if node.starts_with("libvirt-") && !Graph::query(qmp)?.is_used(&node) {
            delete_node(qmp, &node)?;
        }
    }
    Ok(())
}

/// Deletes a node; tries again for a while, since an export's last reference goes a little later.
fn delete_node(qmp: &mut Qmp, node: &str) -> Result<(), QmpError> {
    let mut tries = 0;
    loop {
        match qmp.execute("blockdev-del", json!({"node-name": node})) {
            Err(QmpError::Refused { message, .. }) if message.contains("Failed to find") => {
                return Ok(());
            }
            Err(QmpError::Refused { .. }) if tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.map(|_| ()),
        }
    }
}

fn ignore_refusal(outcome: Result<Value, QmpError>) -> Result<(), QmpError> {
    match outcome {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

fn kill(argument: &Path) -> Result<(), UndoError> {
    for process in process::with_argument(argument) {
        process
            .kill(KILL_TIMEOUT)
            .map_err(|source| UndoError::Kill {
                argument: argument.to_owned(),
                source,
            })?;
    }
    Ok(())
}

fn delete(path: &Path) -> Result<(), UndoError> {
    let outcome = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(UndoError::Delete {
            path: path.to_owned(),
            source,
        }),
    }
}

/// QEMU's block graph at one moment.
struct Graph {
    raw: Value,
}

impl Graph {
    fn query(qmp: &mut Qmp) -> Result<Graph, QmpError> {
        Ok(Graph {
            raw: qmp.execute("x-debug-query-block-graph", Value::Null)?,
        })
    }

    fn nodes(&self) -> impl Iterator<Item = &Value> {
        self.raw["nodes"].as_array().into_iter().flatten()
    }

    fn id_of(&self, name: &str) -> Option<u64> {
        self.nodes()
            .find(|n| n["name"] == name && n["type"] == "block-driver")
            .and_then(|n| n["id"].as_u64())
    }

    fn has(&self, name: &str) -> bool {
        self.id_of(name).is_some()
    }

    fn edges(&self) -> impl Iterator<Item = &Value> {
        self.raw["edges"].as_array().into_iter().flatten()
    }

    /// Whether anything stands on a node.
    fn is_used(&self, name: &str) -> bool {
        let id = self.id_of(name);
        id.is_some() && self.edges().any(|edge| edge["child"].as_u64() == id)
    }

    /// A node and all that it stands on, from above.
    fn below(&self, root: &str) -> Vec<String> {
        let mut found: Vec<u64> = self.id_of(root).into_iter().collect();
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            let edges = self
                .edges()
                .filter(|e| e["parent"].as_u64() == Some(parent));
            for child in edges.filter_map(|edge| edge["child"].as_u64()) {
                if !found.contains(&child) {
                    found.push(child);
                }
            }
            at += 1;
        }
        let name = |id: &u64| {
            let node = self.nodes().find(|n| n["id"].as_u64() == Some(*id))?;
            node["name"].as_str().map(str::to_owned)
        };
        found.iter().filter_map(name).collect()
    }

    fn child_of(&self, name: &str, edge_name: &str) -> Option<String> {
        let parent = self.id_of(name)?;
        let edges = self.raw["edges"].as_array()?;
        let child = edges
            .iter()
            .find(|e| e["parent"].as_u64() == Some(parent) && e["name"] == edge_name)?["child"]
            .as_u64()?;
        let node = self.nodes().find(|n| n["id"].as_u64() == Some(child))?;
        node["name"].as_str().map(str::to_owned)
    }
}

/// The node that a device's back end stands on now.
fn root_of_device(qmp: &mut Qmp, qdev: &str) -> Result<Option<String>, QmpError> {
    let blocks = qmp.execute("query-block", Value::Null)?;
    Ok(blocks
        .as_array()
        .into_iter()
        .flatten()
        .find(|b| b["qdev"] == qdev)
        .and_then(|b| b["inserted"]["node-name"].as_str().map(str::to_owned)))
}

/// Removes every node, export and server that bears our names, whatever the journal says.
///
/// Returns what was found, in words. Used by recovery when the catalog was lost.
///
/// # Errors
/// QEMU did not answer or refused.
pub fn sweep(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let mut found = Vec::new();
    let exports = qmp.execute("query-block-exports", Value::Null)?;
    let ours: Vec<String> = exports
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|e| e["id"].as_str())
        .filter(|id| id.starts_with(crate::NODE_PREFIX))
        .map(str::to_owned)
        .collect();
    if !ours.is_empty() {
        found.push(format!("NBD exports {}", ours.join(", ")));
        stop_nbd(qmp, &ours)?;
    }
    let graph = Graph::query(qmp)?;
    let filters: Vec<String> = graph
        .nodes()
        .filter_map(|n| n["name"].as_str())
        .filter(|n| n.starts_with(crate::NODE_PREFIX) && n.ends_with("-filter"))
        .map(str::to_owned)
        .collect();
    for filter in filters {
        let stem = filter.trim_end_matches("-filter").to_owned();
        let blocks = qmp.execute("query-block", Value::Null)?;
        let qdev = blocks
            .as_array()
            .into_iter()
            .flatten()
            .find(|b| b["inserted"]["node-name"] == filter.as_str())
            .and_then(|b| b["qdev"].as_str().map(str::to_owned))
            .unwrap_or_default();
        let (access, scratch) = (format!("{stem}-access"), format!("{stem}-scratch"));
        remove_filter(qmp, &qdev, &access, &filter, &scratch)?;
        found.push(format!("filter {filter}"));
    }
    Ok(found)
}
