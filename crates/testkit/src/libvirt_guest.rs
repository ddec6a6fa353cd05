//! The tiny guest as a domain of a [`LibvirtHost`].

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::accel::Accel;
use crate::command::{GuestBuilder, Mode};
use crate::console::Log;
use crate::debian;
use crate::image::GuestImage;
use crate::libvirt::LibvirtHost;
use crate::process::run;

/// Size of each disk.
const DISK_MIB: u64 = 64;
const MEMORY_MIB: u64 = 192;

/// A persistent domain that counts in memory and on its qcow2 disks.
#[derive(Debug)]
pub struct LibvirtGuest {
    name: String,
    disks: Vec<PathBuf>,
    log: Log,
}

impl LibvirtGuest {
    /// Makes `disk_count` disks, and defines and starts the guest; waits until it has booted.
    pub fn start(host: &LibvirtHost, name: &str, mode: Mode, disk_count: usize) -> LibvirtGuest {
        let guest = LibvirtGuest::define(host, name, mode, disk_count);
        guest.boot(host, mode);
        guest
    }

    /// Makes `disk_count` disks, and defines the guest.
    pub fn define(host: &LibvirtHost, name: &str, mode: Mode, disk_count: usize) -> LibvirtGuest {
        LibvirtGuest::define_with(host, name, mode, disk_count, "")
    }

    /// Makes `disk_count` disks, and defines the guest with further devices (XML).
    pub fn define_with(
        host: &LibvirtHost,
        name: &str,
        mode: Mode,
        disk_count: usize,
        devices: &str,
    ) -> LibvirtGuest {
        let disks: Vec<PathBuf> = (0..disk_count)
            .map(|index| host.file(format!("{name}-{index}.qcow2")))
            .collect();
        for disk in &disks {
            let mut make = std::process::Command::new("qemu-img");
            make.args(["create", "-q", "-f", "qcow2"]).arg(disk);
            run(make.arg(format!("{DISK_MIB}M")));
        }
        LibvirtGuest::define_on(host, name, (mode, MEMORY_MIB), disks, devices)
    }

    /// A guest with these disks, as XML of the domain's devices; waits until it has booted.
    pub fn start_with(host: &LibvirtHost, name: &str, mode: Mode, devices: &str) -> LibvirtGuest {
        let guest = LibvirtGuest::define_devices(host, name, (mode, MEMORY_MIB), devices);
        guest.boot(host, mode);
        guest
    }

    /// A Debian with its guest agent ([`debian::guest`]) as a domain; waits until it has booted.
    pub fn start_debian(host: &LibvirtHost, name: &str) -> LibvirtGuest {
        let disk = host.file(format!("{name}.qcow2"));
        let mut copy = std::process::Command::new("qemu-img");
        copy.args(["convert", "-f", "raw", "-O", "qcow2"]);
        run(copy.arg(debian::disk()).arg(&disk));
        let (mode, memory) = (Mode::Debian, debian::MEMORY_MIB);
        let guest = LibvirtGuest::define_on(host, name, (mode, memory), vec![disk], "");
        guest.boot(host, mode);
        guest
    }

    fn define_on(
        host: &LibvirtHost,
        name: &str,
        mode: (Mode, u64),
        disks: Vec<PathBuf>,
        devices: &str,
    ) -> LibvirtGuest {
        let devices = disks_xml(&disks) + devices;
        let mut guest = LibvirtGuest::define_devices(host, name, mode, &devices);
        guest.disks = disks;
        guest
    }

    fn define_devices(
        host: &LibvirtHost,
        name: &str,
        mode: (Mode, u64),
        devices: &str,
    ) -> LibvirtGuest {
        let serial = host.file(format!("{name}.serial.log"));
        let xml = domain_xml(host, name, mode, devices, &serial);
        let file = host.file(format!("{name}.xml"));
        std::fs::write(&file, xml).unwrap();
        host.virsh(&["define", &file.to_string_lossy()]);
        LibvirtGuest {
            name: name.to_owned(),
            disks: Vec::new(),
            log: Log::new(serial),
        }
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disks that were made for it, `vda` first.
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// The first serial port's log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Starts it, and waits until it has booted.
    pub fn boot(&self, host: &LibvirtHost, mode: Mode) {
        host.virsh(&["start", &self.name]);
        self.log.wait_for("ready mode=", mode.boot_timeout());
    }

    /// Waits for a line that it prints from now on.
    pub fn wait_for_more(&self, part: &str, timeout: Duration) -> String {
        self.log.wait_for_since(self.log.mark(), part, timeout)
    }
}

fn disks_xml(disks: &[PathBuf]) -> String {
    let mut devices = String::new();
    for (index, disk) in disks.iter().enumerate() {
        let letter = char::from(b'a' + u8::try_from(index).unwrap());
        write!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{}'/><target dev='vd{letter}' bus='virtio'/></disk>",
            disk.display()
        )
        .unwrap();
    }
    devices
}

fn domain_xml(
    host: &LibvirtHost,
    name: &str,
    (mode, memory_mib): (Mode, u64),
    devices: &str,
    serial: &Path,
) -> String {
    let image = GuestImage::build().unwrap();
    let kernel = readable_copy(host, &image.kernel, "vmlinuz");
    let initrd = readable_copy(host, &image.initramfs, "initramfs");
    let accel = Accel::detect();
    let kind = if accel.name().starts_with("kvm") {
        "kvm"
    } else {
        "qemu"
    };
    let cpu = if kind == "kvm" {
        "host-passthrough"
    } else {
        "maximum"
    };
    let cmdline = GuestBuilder::default().mode(mode).kernel_line();
    format!(
        "<domain type='{kind}'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type>\
         <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline></os>\
         <features><acpi/></features><cpu mode='{cpu}'/><devices>{devices}\
         <serial type='file'><source path='{serial}' append='on'/></serial>\
         <serial type='null'/><memballoon model='none'/>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>",
        kernel = kernel.display(),
        initrd = initrd.display(),
        serial = serial.display(),
    )
}

/// The cache lies in a home folder, which QEMU's user may not enter.
fn readable_copy(host: &LibvirtHost, from: &Path, name: &str) -> PathBuf {
    let to = host.file(name);
    if !to.exists() {
        std::fs::copy(from, &to).unwrap();
    }
    to
}
