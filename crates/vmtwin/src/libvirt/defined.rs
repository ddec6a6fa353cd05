//! The disks that a domain's definition gives it: what a guest that does not run is backed up by.
//!
//! QEMU's own answers are truer, but there is none. Ids are those that QEMU would report: libvirt
//! names a device by its place (`qemuAssignDeviceDiskAlias` in its sources), or as the user wants
//! it (`ua-…`), and QEMU calls it by that name. So a disk has one id whether its guest runs or not.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use vmtwin_hypervisor::machine::{AddressKind, Disk};

/// What of a definition tells of its disks, and a little more for the machine's record.
#[derive(Debug, Deserialize)]
pub(crate) struct Defined {
    /// The domain's name.
    pub(crate) name: String,
    /// Its uuid.
    pub(crate) uuid: String,
    memory: Memory,
    os: Os,
    #[serde(default)]
    devices: Devices,
}

/// In KiB, as libvirt always writes it.
#[derive(Debug, Deserialize)]
struct Memory {
    #[serde(rename = "$text")]
    kib: u64,
}

#[derive(Debug, Deserialize)]
struct Os {
    r#type: OsType,
    nvram: Option<Nvram>,
}

#[derive(Debug, Deserialize)]
struct OsType {
    #[serde(rename = "@machine", default)]
    machine: String,
}

#[derive(Debug, Deserialize)]
struct Nvram {
    #[serde(rename = "@format")]
    format: Option<String>,
    #[serde(rename = "$text")]
    path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Devices {
    #[serde(rename = "disk", default)]
    disks: Vec<DiskElement>,
}

#[derive(Debug, Deserialize)]
struct DiskElement {
    #[serde(rename = "@device")]
    device: Option<String>,
    driver: Option<Driver>,
    source: Option<Source>,
    target: Target,
    alias: Option<Alias>,
    address: Option<DriveAddress>,
    readonly: Option<Empty>,
    transient: Option<Empty>,
}

#[derive(Debug, Deserialize)]
struct Driver {
    #[serde(rename = "@type")]
    format: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Source {
    #[serde(rename = "@file")]
    file: Option<String>,
    #[serde(rename = "@dev")]
    dev: Option<String>,
    encryption: Option<Empty>,
    slices: Option<Empty>,
}

#[derive(Debug, Deserialize)]
struct Target {
    #[serde(rename = "@dev")]
    dev: String,
    #[serde(rename = "@bus", default)]
    bus: String,
}

#[derive(Debug, Deserialize)]
struct Alias {
    #[serde(rename = "@name")]
    name: String,
}

/// Where a disk of a bus with controllers is; other kinds of addresses lack all of it.
#[derive(Debug, Deserialize)]
struct DriveAddress {
    #[serde(rename = "@type")]
    kind: String,
    #[serde(rename = "@controller", default)]
    controller: u32,
    #[serde(rename = "@bus", default)]
    bus: String,
    #[serde(rename = "@target", default)]
    target: u32,
    #[serde(rename = "@unit", default)]
    unit: u32,
}

#[derive(Debug, Deserialize)]
struct Empty {}

impl Defined {
    /// Reads a definition, as libvirt writes it.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn parse(xml: &str) -> Result<Defined> {
        quick_xml::de::from_str(xml).context("the definition of the guest cannot be read")
    }

    /// Its machine type.
    pub(crate) fn machine_type(&self) -> &str {
        &self.os.r#type.machine
    }

    /// Memory that it is given at its start.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.kib.saturating_mul(1024)
    }

    /// Its disks, those that a backup leaves out among them; sizes are not known yet.
    ///
    /// # Errors
    /// What is in a disk cannot be read while its guest is off.
    pub(crate) fn disks(&self) -> Result<Vec<Disk>> {
        let disks = self.devices.disks.iter();
        let disks = disks.filter(|disk| disk.source.is_some());
        let mut all = disks.map(DiskElement::disk).collect::<Result<Vec<_>>>()?;
        if let Some(nvram) = &self.os.nvram
            && let Some(path) = nvram.path.as_deref().map(str::trim)
            // Made when the guest is started for the first time.
            && Path::new(path).is_file()
        {
            let format = nvram.format.clone().unwrap_or_else(|| "raw".to_owned());
            all.push(Disk {
                firmware: true,
                ..disk("system.flash1".to_owned(), path, &format)
            });
        }
        Ok(all)
    }
}

impl DiskElement {
    fn disk(&self) -> Result<Disk> {
        let id = self.id();
        let excluded = self.exclusion();
        let source = self.source.as_ref().context("no source")?;
        let address = source.file.as_ref().or(source.dev.as_ref());
        let format = self.driver.as_ref().and_then(|d| d.format.as_deref());
        let format = format.unwrap_or("raw");
        if excluded.is_none() {
            if address.is_none() {
                bail!(
                    "the guest is not running, and disk {id} is not a file or a device of this \
                     host: start the guest, then back it up"
                );
            }
            ensure!(
                source.encryption.is_none() && source.slices.is_none(),
                "the guest is not running, and disk {id} is encrypted or a part of a file, which \
                 only its QEMU can read: start the guest, then back it up"
            );
        }
        Ok(Disk {
            kind: match (&source.file, &source.dev) {
                (Some(_), _) => AddressKind::File,
                (None, Some(_)) => AddressKind::BlockDevice,
                (None, None) => AddressKind::Other,
            },
            read_only: self.readonly.is_some(),
            included: excluded.is_none(),
            excluded_because: excluded.map(str::to_owned),
            ..disk(id, address.map_or("", String::as_str), format)
        })
    }

    fn id(&self) -> String {
        if let Some(alias) = self.alias.as_ref().filter(|a| a.name.starts_with("ua-")) {
            return alias.name.clone();
        }
        let bus = &self.target.bus;
        match self.address.as_ref().filter(|at| at.kind == "drive") {
            None => format!("{bus}-disk{}", index_of(&self.target.dev)),
            Some(at) if bus == "scsi" => format!(
                "{bus}{}-{}-{}-{}",
                at.controller, at.bus, at.target, at.unit
            ),
            Some(at) => format!("{bus}{}-{}-{}", at.controller, at.bus, at.unit),
        }
    }

    /// Why it is left out, as where QEMU is asked.
    fn exclusion(&self) -> Option<&'static str> {
        let removable = matches!(self.device.as_deref(), Some("cdrom"));
        match (removable, self.readonly.is_some(), self.transient.is_some()) {
            (true, _, _) => Some("removable read-only medium (CD-ROM)"),
            (_, true, _) => Some("read-only: the guest cannot change it"),
            (_, _, true) => Some("transient: its changes are dropped when the guest ends"),
            _ => None,
        }
    }
}

/// A disk that a backup takes.
fn disk(id: String, address: &str, format: &str) -> Disk {
    Disk {
        id,
        qdev: String::new(),
        node_name: String::new(),
        address: address.to_owned(),
        kind: AddressKind::File,
        format: format.to_owned(),
        size_bytes: 0,
        read_only: false,
        firmware: false,
        included: true,
        excluded_because: None,
        backing: Vec::new(),
    }
}

/// The number of a device's name: 0 for `vda`, 26 for `sdaa`.
fn index_of(dev: &str) -> u64 {
    let letters = dev.bytes().skip(2).take_while(u8::is_ascii_lowercase);
    let number = letters.fold(0u64, |sum, letter| {
        sum.saturating_mul(26)
            .saturating_add(u64::from(letter - b'a') + 1)
    });
    number.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn disks(elements: &str) -> Result<Vec<Disk>> {
        let xml = format!(
            "<domain type='kvm'><name>web</name><uuid>u</uuid><memory unit='KiB'>1024</memory>\
             <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type>\
             <nvram format='raw'>/no/such/file</nvram></os><devices><emulator>/q</emulator>\
             {elements}<controller type='usb'/></devices></domain>"
        );
        let defined = Defined::parse(&xml)?;
        assert_eq!(defined.memory_bytes(), 1 << 20);
        assert_eq!(defined.machine_type(), "pc-q35-10.0");
        defined.disks()
    }

    const DRIVE: &str = "<address type='drive' controller='1' bus='0' target='2' unit='3'/>";

    #[test]
    fn ids_are_those_that_qemu_reports() {
        let cases = [
            ("<target dev='vda' bus='virtio'/>", "", "virtio-disk0"),
            (
                "<target dev='vdaa' bus='virtio'/>",
                "<address type='pci' bus='0x01'/>",
                "virtio-disk26",
            ),
            ("<target dev='sda' bus='scsi'/>", DRIVE, "scsi1-0-2-3"),
            ("<target dev='sda' bus='sata'/>", DRIVE, "sata1-0-3"),
            ("<target dev='hda' bus='ide'/>", DRIVE, "ide1-0-3"),
            (
                "<target dev='sdb' bus='usb'/>",
                "<address type='usb' bus='0' port='1'/>",
                "usb-disk1",
            ),
            (
                "<target dev='vdb' bus='virtio'/>",
                "<alias name='ua-data'/>",
                "ua-data",
            ),
        ];
        for (target, more, id) in cases {
            let xml = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='/v/a&amp;b'/><backingStore type='file'><source file='/c'/>\
                 </backingStore>{target}{more}</disk>"
            );
            let found = disks(&xml).unwrap();
            assert_eq!(
                (found[0].id.as_str(), found[0].address.as_str()),
                (id, "/v/a&b")
            );
            assert_eq!(found[0].format, "qcow2");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_unless_it_is_left_out() {
        let target = "<target dev='vda' bus='virtio'/>";
        let disk = |source: &str, more: &str| {
            disks(&format!(
                "<disk type='file' device='disk'>{source}{target}{more}</disk>"
            ))
        };
        assert!(disk("", "").unwrap().is_empty());
        for source in [
            "<source protocol='nbd' name='x'/>",
            "<source pool='p' volume='v'/>",
            "<source file='/a'><encryption format='luks'/></source>",
            "<source file='/a'><slices><slice type='storage' offset='1' size='2'/></slices></source>",
        ] {
            disk(source, "").unwrap_err();
            assert!(!disk(source, "<readonly/>").unwrap()[0].included);
        }
        assert_eq!(
            disk("<source dev='/dev/sdz'/>", "").unwrap()[0].kind,
            AddressKind::BlockDevice
        );
    }
}
