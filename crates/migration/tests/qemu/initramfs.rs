//! The smallest Linux guest that shows whether its memory and its disks survive: it counts on
//! the serial line and reads from both disks before each number.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What QEMU boots.
pub(crate) struct Files {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) disks: [PathBuf; 2],
}

/// In the order in which they must be loaded.
const MODULES: &[&str] = &[
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

/// A number is only printed if both disks were read around the page cache.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /$module.ko; done
count=0
while true; do
    for disk in vda vdb; do
        /bin/busybox dd if=/dev/$disk of=/dev/null iflag=direct bs=4096 count=1 2>/dev/null || {
            /bin/busybox echo "disk $disk failed" >/dev/ttyS0; exit 1; }
    done
    count=$((count + 1))
    /bin/busybox echo "count $count" >/dev/ttyS0
    /bin/busybox sleep 0.2
done
"#;

/// Builds the guest's files in `dir`.
pub(crate) fn build(dir: &Path) -> Files {
    // What `tools/setup` unpacked; its modules lie beside it.
    let kernel = vmtwin_testkit::GuestImage::build().unwrap().kernel;
    let drivers = kernel.with_file_name("all/kernel/drivers");
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let mut names = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap();
        fs::copy(
            drivers.join(format!("{module}.ko")),
            root.join(format!("{name}.ko")),
        )
        .unwrap();
        names.push_str(name);
        names.push('\n');
    }
    fs::write(root.join("modules"), names).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    let initramfs = dir.join("initramfs");
    let pack = "set -o pipefail; chmod 755 init && find . | cpio -o -H newc --quiet | gzip -1 >../initramfs";
    let status = Command::new("bash")
        .args(["-c", pack])
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(status.success(), "cannot pack the initramfs");
    let disks = ["disk-a", "disk-b"].map(|name| dir.join(name));
    for disk in &disks {
        fs::write(disk, vec![0x5a; 1 << 20]).unwrap();
    }
    Files {
        kernel,
        initramfs,
        disks,
    }
}
