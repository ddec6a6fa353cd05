//! Block devices that may hold a file system: partitions, whole disks, logical volumes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::modules::Modules;
use super::probe::{self, Found};

const CLASS: &str = "/sys/class/block";
/// LVM's program, if the host has it.
pub(crate) const LVM: &str = "/sbin/lvm";
const SECTOR_BYTES: u64 = 512;

/// A block device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    /// As in [`crate::wire::FileSystem::name`].
    pub(super) name: String,
    pub(super) disks: Vec<usize>,
    pub(super) size_bytes: u64,
}

/// The kernel's names of the disks, in the order of their numbers.
pub(super) fn disks() -> io::Result<Vec<String>> {
    let mut numbered = Vec::new();
    for name in names()? {
        let serial = fs::read_to_string(Path::new(CLASS).join(&name).join("serial"));
        let number = serial.ok().and_then(|s| disk_number(s.trim()));
        if let Some(number) = number {
            numbered.push((number, name));
        }
    }
    numbered.sort_unstable();
    Ok(numbered.into_iter().map(|(_, name)| name).collect())
}

/// The number in the serial number that the host gave a disk.
fn disk_number(serial: &str) -> Option<usize> {
    serial.strip_prefix('d')?.parse().ok()
}

/// All devices that nothing else is built on, with what is on them.
pub(super) fn find(modules: &Modules) -> io::Result<Vec<(Device, Found)>> {
    let disks = disks()?;
    let mut found = Vec::new();
    for device in plain(&disks)? {
        let what = probe::probe(&device.path);
        found.push((device, what));
    }
    if found
        .iter()
        .any(|(_, what)| what.kind.as_deref() == Some(probe::LVM_MEMBER))
        && activate_volumes(modules)
    {
        for device in volumes(&disks)? {
            let what = probe::probe(&device.path);
            found.push((device, what));
        }
        found.retain(|(_, what)| what.kind.as_deref() != Some(probe::LVM_MEMBER));
    }
    Ok(found)
}

/// Partitions, and disks that have none.
fn plain(disks: &[String]) -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    let all = names()?;
    for (number, disk) in disks.iter().enumerate() {
        let mut parts: Vec<(u32, &String)> = all
            .iter()
            .filter_map(|name| Some((partition_of(disk, name)?, name)))
            .collect();
        parts.sort_unstable();
        if parts.is_empty() {
            devices.push(device(disk, "whole".into(), vec![number]));
        }
        for (part, name) in parts {
            devices.push(device(name, format!("p{part}"), vec![number]));
        }
    }
    Ok(devices)
}

/// The number of a partition of that disk.
fn partition_of(disk: &str, name: &str) -> Option<u32> {
    let text = fs::read_to_string(Path::new(CLASS).join(disk).join(name).join("partition"));
    text.ok()?.trim().parse().ok()
}

/// Whether LVM could be asked to make devices of its volumes.
fn activate_volumes(modules: &Modules) -> bool {
    modules.load("lvm");
    if !Path::new(LVM).exists() {
        return false;
    }
    let config = "activation { udev_sync=0 udev_rules=0 monitoring=0 } \
                  devices { use_devicesfile=0 obtain_device_list_from_udev=0 \
                  external_device_info_source=\"none\" } \
                  global { locking_type=1 use_lvmlockd=0 use_lvmpolld=0 \
                  thin_check_executable=\"\" cache_check_executable=\"\" } \
                  backup { backup=0 archive=0 }";
    let status = Command::new(LVM)
        .args(["vgchange", "--activate", "y", "--sysinit", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .status();
    match status {
        // Some of the groups may have failed; those that did not are there.
        Ok(_) => true,
        Err(error) => {
            eprintln!("appliance: lvm: {error}");
            false
        }
    }
}

/// Volumes that users see; LVM's inner ones have an id with a suffix.
fn volumes(disks: &[String]) -> io::Result<Vec<Device>> {
    /// `LVM-`, the id of the group, the id of the volume.
    const ID_CHARS: usize = 4 + 32 + 32;
    let mut devices = Vec::new();
    for name in names()? {
        let folder = Path::new(CLASS).join(&name);
        let read = |file: &str| fs::read_to_string(folder.join("dm").join(file));
        let (Ok(id), Ok(mapped)) = (read("uuid"), read("name")) else {
            continue;
        };
        if id.trim().starts_with("LVM-") && id.trim().len() == ID_CHARS {
            let below = disks_below(&name, disks, 0);
            devices.push(device(&name, volume_name(mapped.trim()), below));
        }
    }
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(devices)
}

/// `group/volume` of the mapped name `group-volume`, in which a `-` of a name is doubled.
fn volume_name(mapped: &str) -> String {
    let undoubled = mapped.replace("--", "\0");
    undoubled.replacen('-', "/", 1).replace('\0', "-")
}

/// Disks that a device is built on, however many devices are between.
fn disks_below(name: &str, disks: &[String], depth: usize) -> Vec<usize> {
    const MAX_DEPTH: usize = 8;
    let mut below = Vec::new();
    if let Some(number) = disks
        .iter()
        .position(|disk| disk == name || partition_of(disk, name).is_some())
    {
        below.push(number);
    }
    let slaves = fs::read_dir(Path::new(CLASS).join(name).join("slaves"));
    for slave in slaves.into_iter().flatten().flatten() {
        if depth < MAX_DEPTH {
            let slave = slave.file_name().to_string_lossy().into_owned();
            below.extend(disks_below(&slave, disks, depth + 1));
        }
    }
    below.sort_unstable();
    below.dedup();
    below
}

fn device(kernel_name: &str, name: String, disks: Vec<usize>) -> Device {
    let sectors = fs::read_to_string(Path::new(CLASS).join(kernel_name).join("size"));
    let sectors: u64 = sectors
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    Device {
        path: Path::new("/dev").join(kernel_name),
        name,
        disks,
        size_bytes: sectors.saturating_mul(SECTOR_BYTES),
    }
}

fn names() -> io::Result<Vec<String>> {
    fs::read_dir(CLASS)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_volumes() {
        assert_eq!(volume_name("vg0-root"), "vg0/root");
        assert_eq!(volume_name("ubuntu--vg-ubuntu--lv"), "ubuntu-vg/ubuntu-lv");
    }

    #[test]
    fn only_the_hosts_serials_are_disks() {
        assert_eq!(disk_number("d12"), Some(12));
        assert_eq!(disk_number("QM00001"), None);
    }
}
