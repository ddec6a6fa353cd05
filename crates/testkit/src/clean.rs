//! Whether something of a backup was left behind: in a guest, or in a folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cache;
use crate::guest::Guest;

/// What our nodes, exports and files are called.
const OUR_PREFIX: &str = "vmtwin";
/// Parts of the names of files that must not outlive a job.
const PASSING_FILES: [&str; 4] = ["scratch", "spool", ".tmp", ".draft"];

/// Panics if a backup left anything in the guest, or if it does not run.
pub fn assert_clean(guest: &Guest) {
    let left = leftovers(guest);
    assert!(left.is_empty(), "left in the guest: {left:#?}");
}

/// What a backup left in the guest, in words. Dirty bitmaps are meant to stay.
pub fn leftovers(guest: &Guest) -> Vec<String> {
    let qmp = guest.test_qmp();
    let ask = |command: &str| qmp.execute(command, json!({}));
    let mut left = Vec::new();
    let status = qmp.status();
    if status != "running" {
        left.push(format!("the guest is {status}"));
    }
    for node in list(&ask("query-named-block-nodes")) {
        let name = node["node-name"].as_str().unwrap_or_default();
        let driver = node["drv"].as_str().unwrap_or_default();
        if name.starts_with(OUR_PREFIX)
            || ["copy-before-write", "snapshot-access"].contains(&driver)
        {
            left.push(format!("block node {name} ({driver})"));
        }
    }
    let things = [
        ("block export", "query-block-exports", "id"),
        ("block job", "query-block-jobs", "device"),
        ("set of file descriptors", "query-fdsets", "fdset-id"),
    ];
    for (what, command, key) in things {
        left.extend(
            list(&ask(command))
                .iter()
                .map(|thing| format!("{what} {}", thing[key])),
        );
    }
    left.extend(capabilities(&ask("query-migrate-capabilities")));
    // QEMU has no query for its NBD server; stopping one that is not there fails.
    if qmp.try_execute("nbd-server-stop", json!({})).is_ok() {
        left.push("an NBD server".to_owned());
    }
    left.extend(open_files(guest.pid()));
    left
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn capabilities(answer: &Value) -> Vec<String> {
    let ours = |one: &&Value| one["capability"] == "background-snapshot" && one["state"] == true;
    let found = answer.as_array().into_iter().flatten().filter(ours);
    found
        .map(|one| format!("migration capability {}", one["capability"]))
        .collect()
}

/// Files of ours that QEMU still holds open.
fn open_files(pid: u32) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_ours = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let passing = PASSING_FILES.iter().any(|part| file.contains(part));
        (file.starts_with(OUR_PREFIX) || passing) && !path.starts_with(cache::folder())
    };
    targets
        .filter(is_ours)
        .map(|path| format!("open file {}", path.display()))
        .collect()
}

/// Panics if the folder, or one in it, holds a file that must not outlive a job.
pub fn assert_no_spools(folder: &Path) {
    let mut left = Vec::new();
    collect_spools(folder, &mut left);
    assert!(left.is_empty(), "left in {}: {left:#?}", folder.display());
}

fn collect_spools(folder: &Path, left: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_spools(&path, left);
        } else if PASSING_FILES
            .iter()
            .any(|part| entry.file_name().to_string_lossy().contains(part))
        {
            left.push(path);
        }
    }
}
