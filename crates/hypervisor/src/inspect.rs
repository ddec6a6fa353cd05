//! Inspection: ask QEMU what the guest is and what would block a backup.
//!
//! Everything comes from QEMU's own answers over QMP, and its command line from `/proc`; nothing
//! from configuration of ours. Order of disks is QEMU's order, so ids are stable between runs.

use std::collections::HashSet;
use std::os::unix::fs::FileTypeExt;

use serde_json::{Value, json};

use crate::NODE_PREFIX;
use crate::machine::{AddressKind, Disk, MACHINE_FORMAT, Machine, MachineFile};
use crate::process;
use crate::qmp::{Qmp, QmpError};

/// Why a guest could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// QEMU did not answer or refused.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// `/proc` has nothing of QEMU's process.
    #[error("cannot read the command line of QEMU (pid {pid}); run vmtwin as root or as its user")]
    Process {
        /// QEMU's process id.
        pid: u32,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Inspects the guest behind `qmp`.
///
/// # Errors
/// See [`InspectError`].
pub fn inspect(qmp: &mut Qmp) -> Result<Machine, InspectError> {
    let pid = qmp.peer().pid;
    let proc_error = |source| InspectError::Process { pid, source };
    let args = process::arguments(pid).map_err(proc_error)?;
    let cwd = process::working_dir(pid).map_err(proc_error)?;
    let version = qmp.execute("query-version", Value::Null)?;
    let memory = qmp.execute("query-memory-size-summary", Value::Null)?;
    let disks = disks(&qmp.execute("query-block", Value::Null)?);
    let files = tpm_state(&args).into_iter().collect();
    Ok(Machine {
        format: MACHINE_FORMAT,
        name: text(&qmp.execute("query-name", Value::Null)?["name"]),
        uuid: text(&qmp.execute("query-uuid", Value::Null)?["UUID"]).unwrap_or_default(),
        qemu_version: version_text(&version["qemu"]),
        machine_type: machine_type(qmp)?,
        run_state: run_state(qmp)?,
        memory_bytes: memory["base-memory"].as_u64().unwrap_or(0)
            + memory["plugged-memory"].as_u64().unwrap_or(0),
        pid,
        uid: process::user_and_group(pid).map_or(0, |(uid, _)| uid),
        cwd: cwd.to_string_lossy().into_owned(),
        args,
        blockers: blockers(&disks),
        disks,
        files,
        memory_blockers: memory_blockers(qmp)?,
    })
}

/// QEMU's run state: `running`, `paused`, `shutdown`…
///
/// # Errors
/// QEMU did not answer.
pub fn run_state(qmp: &mut Qmp) -> Result<String, QmpError> {
    Ok(text(&qmp.execute("query-status", Value::Null)?["status"]).unwrap_or_default())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn version_text(v: &Value) -> String {
    let part = |k: &str| v[k].as_u64().unwrap_or(0);
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

fn machine_type(qmp: &mut Qmp) -> Result<String, QmpError> {
    let full = qmp.execute("qom-get", json!({"path": "/machine", "property": "type"}))?;
    let full = full.as_str().unwrap_or_default();
    Ok(full.strip_suffix("-machine").unwrap_or(full).to_owned())
}

/// Reasons QEMU itself gives against a migration, and kinds of memory that a background snapshot
/// cannot write-protect.
fn memory_blockers(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let mut reasons: Vec<String> = qmp.execute("query-migrate", Value::Null)?["blocked-reasons"]
        .as_array()
        .map(|all| all.iter().filter_map(text).collect())
        .unwrap_or_default();
    let objects = qmp.execute("qom-list", json!({"path": "/objects"}))?;
    for object in objects.as_array().into_iter().flatten() {
        if object["type"] == "child<memory-backend-file>" {
            let name = object["name"].as_str().unwrap_or_default();
            let share = qmp.execute(
                "qom-get",
                json!({"path": format!("/objects/{name}"), "property": "share"}),
            )?;
            if share == Value::Bool(true) {
                reasons.push(format!(
                    "memory backend '{name}' is a shared file, which cannot be write-protected \
                     for a snapshot; use memory-backend-ram, or --consistency crash"
                ));
            }
        }
    }
    Ok(reasons)
}

fn blockers(disks: &[Disk]) -> Vec<String> {
    disks
        .iter()
        .filter(|d| d.node_name.starts_with(NODE_PREFIX))
        .map(|d| {
            format!(
                "disk {} still has a filter of an earlier backup; run: vmtwin recover",
                d.id
            )
        })
        .collect()
}

/// The disks in QEMU's answer to `query-block`.
fn disks(answer: &Value) -> Vec<Disk> {
    let mut ids = HashSet::new();
    let mut all = Vec::new();
    for entry in answer.as_array().into_iter().flatten() {
        if entry["inserted"].is_object() {
            all.push(disk(entry, &mut ids));
        }
    }
    all
}

fn disk(entry: &Value, ids: &mut HashSet<String>) -> Disk {
    let inserted = &entry["inserted"];
    let image = &inserted["image"];
    let qdev = text(&entry["qdev"]).unwrap_or_default();
    let node_name = text(&inserted["node-name"]).unwrap_or_default();
    let address = text(&image["filename"])
        .or_else(|| text(&inserted["file"]))
        .unwrap_or_default();
    let address = iscsi_uri(&address).unwrap_or(address);
    let format = text(&inserted["drv"]).unwrap_or_default();
    let read_only = inserted["ro"].as_bool().unwrap_or(false);
    let firmware = qdev.contains("flash");
    let excluded = exclusion(entry, &qdev, &address, &format, read_only);
    Disk {
        id: unique_id(entry, &qdev, &node_name, ids),
        kind: address_kind(&address),
        size_bytes: image["virtual-size"].as_u64().unwrap_or(0),
        read_only,
        firmware,
        included: excluded.is_none(),
        excluded_because: excluded,
        backing: backing_chain(image),
        qdev,
        node_name,
        address,
        format,
    }
}

fn exclusion(
    entry: &Value,
    qdev: &str,
    address: &str,
    format: &str,
    read_only: bool,
) -> Option<String> {
    let removable = entry["removable"].as_bool().unwrap_or(false);
    if removable && read_only {
        Some("removable read-only medium (CD-ROM)".into())
    } else if read_only {
        Some("read-only: the guest cannot change it".into())
    } else if qdev.is_empty() {
        Some("no device of the guest uses it".into())
    } else if format == "vvfat" || address.starts_with("fat:") {
        Some("a folder of the host shown as a FAT disk".into())
    } else {
        None
    }
}

/// The device's id, or the back end's name, made safe for file names and unique.
fn unique_id(entry: &Value, qdev: &str, node: &str, taken: &mut HashSet<String>) -> String {
    let from_qdev = qdev
        .strip_prefix("/machine/peripheral/")
        .and_then(|rest| rest.split('/').next())
        .filter(|s| !s.is_empty());
    let flash = qdev
        .strip_prefix("/machine/")
        .filter(|s| s.contains("flash"));
    let device = entry["device"].as_str().filter(|s| !s.is_empty());
    let raw = from_qdev.or(device).or(flash).unwrap_or(node);
    let safe: String = raw
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let safe = safe.trim_start_matches('.');
    let base = if safe.is_empty() { "disk" } else { safe };
    let mut id = base.to_owned();
    let mut n = 2;
    while !taken.insert(id.clone()) {
        id = format!("{base}-{n}");
        n += 1;
    }
    id
}

fn backing_chain(image: &Value) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = &image["backing-image"];
    while next.is_object() && chain.len() < 256 {
        chain.push(text(&next["filename"]).unwrap_or_default());
        next = &next["backing-image"];
    }
    chain
}

/// The URI of what QEMU describes by its options alone (`json:{…}`), where it is iSCSI.
fn iscsi_uri(address: &str) -> Option<String> {
    let options: Value = serde_json::from_str(address.strip_prefix("json:")?).ok()?;
    let mut node = &options;
    while node["file"].is_object() {
        node = &node["file"];
    }
    if node["driver"] != "iscsi" {
        return None;
    }
    let lun = node["lun"].as_u64().unwrap_or(0);
    let [portal, target] = [node["portal"].as_str()?, node["target"].as_str()?];
    Some(format!("iscsi://{portal}/{target}/{lun}"))
}

fn address_kind(address: &str) -> AddressKind {
    let scheme = address.split_once(':').map_or("", |(s, _)| s);
    match scheme {
        s if s.starts_with("nbd") => AddressKind::Nbd,
        "iscsi" => AddressKind::Iscsi,
        _ if address.starts_with('/') => match std::fs::metadata(address) {
            Ok(meta) if meta.file_type().is_block_device() => AddressKind::BlockDevice,
            _ if address.starts_with("/dev/") => AddressKind::BlockDevice,
            _ => AddressKind::File,
        },
        "" => AddressKind::File,
        _ => AddressKind::Other,
    }
}

/// The state file of an emulated TPM, found by the process that serves its socket.
fn tpm_state(args: &[String]) -> Option<MachineFile> {
    let tpmdev = option_value(args, "-tpmdev").find(|v| v.starts_with("emulator"))?;
    let chardev_id = field(tpmdev, "chardev")?;
    let chardev = option_value(args, "-chardev").find(|v| field(v, "id") == Some(chardev_id))?;
    let socket = field(chardev, "path")?;
    let dir = swtpm_state_dir(socket)?;
    let path = format!("{dir}/tpm2-00.permall");
    std::path::Path::new(&path).is_file().then(|| MachineFile {
        role: "tpm-state".into(),
        path,
        stored_as: "/files/tpm2-00.permall".into(),
    })
}

fn option_value<'a>(args: &'a [String], name: &'a str) -> impl Iterator<Item = &'a str> {
    args.windows(2)
        .filter(move |w| w[0] == name)
        .map(|w| w[1].as_str())
}

fn field<'a>(option: &'a str, key: &str) -> Option<&'a str> {
    option
        .split(',')
        .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

/// The state folder of the `swtpm` process whose control socket is `socket`.
fn swtpm_state_dir(socket: &str) -> Option<String> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|s| s.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(args) = process::arguments(pid) else {
            continue;
        };
        let is_swtpm = args.first().is_some_and(|p| p.ends_with("swtpm"));
        if is_swtpm && args.iter().any(|a| a.contains(socket)) {
            return option_value(&args, "--tpmstate")
                .find_map(|v| field(v, "dir").map(str::to_owned));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(device: &str, qdev: &str, removable: bool, ro: bool, file: &str) -> Value {
        json!({"device": device, "qdev": qdev, "removable": removable, "inserted": {
            "node-name": "#block1", "drv": "qcow2", "ro": ro, "file": file,
            "image": {"filename": file, "virtual-size": 1024, "format": "qcow2",
                      "backing-image": {"filename": "/base.qcow2"}}}})
    }

    #[test]
    fn reads_disks_and_leaves_out_cdroms() {
        let answer = json!([
            entry("", "/machine/peripheral/disk0/virtio-backend", false, false, "/a.qcow2"),
            entry("ide1-cd0", "/machine/unattached/device[23]", true, true, "/cd.iso"),
            entry("", "/machine/peripheral/../etc", false, false, "nbd://h/x"),
            {"device": "floppy0", "qdev": "x", "removable": true}
        ]);
        let disks = disks(&answer);
        assert_eq!(disks.len(), 3);
        assert_eq!((disks[0].id.as_str(), disks[0].included), ("disk0", true));
        assert_eq!(disks[0].backing, ["/base.qcow2"]);
        assert!(
            disks[1]
                .excluded_because
                .as_deref()
                .unwrap()
                .contains("CD-ROM")
        );
        assert_eq!(disks[2].id, "disk");
        assert_eq!(disks[2].kind, AddressKind::Nbd);
    }

    #[test]
    fn an_iscsi_disk_has_an_address() {
        let qemus = r#"json:{"driver":"qcow2","file":{"driver":"raw","file":{"driver":"iscsi",
            "portal":"10.0.0.1:3260","target":"iqn.2026-11.org:a","lun":1,"transport":"tcp"}}}"#;
        let uri = iscsi_uri(qemus);
        assert_eq!(
            uri.as_deref(),
            Some("iscsi://10.0.0.1:3260/iqn.2026-11.org:a/1")
        );
        assert_eq!(address_kind(&uri.unwrap_or_default()), AddressKind::Iscsi);
        for other in ["/a", "json:", r#"json:{"driver":"raw","offset":1}"#] {
            assert_eq!(iscsi_uri(other), None, "{other}");
        }
    }

    #[test]
    fn ids_are_unique_and_safe() {
        let mut taken = HashSet::new();
        let e = json!({"device": "a/b"});
        assert_eq!(unique_id(&e, "", "n", &mut taken), "a_b");
        assert_eq!(unique_id(&e, "", "n", &mut taken), "a_b-2");
    }
}
