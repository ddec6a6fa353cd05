//! Disks with the file systems that guests have, filled without mounting any of them.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// A file name that is no UTF-8 and would steer a terminal.
pub const STRANGE_NAME: &[u8] = b"we\xffird\n\x1b[2Jname";

/// Makes the folder of files that the disks are filled with: `etc`, `usr`, a file that is mostly a
/// hole, a strange name, links that lead out of it, and a pipe.
pub fn make_tree(root: &Path) {
    for folder in ["etc/deep/er", "usr/bin", "srv"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/hostname"), "web01\n").unwrap();
    fs::write(root.join("etc/deep/er/file"), "deep").unwrap();
    // Knuth's linear congruential generator: nothing that compresses.
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..3 * MIB).map(|_| next()).collect();
    fs::write(root.join("usr/bin/noise"), &noise).unwrap();
    let holes = File::create(root.join("srv/holes")).unwrap();
    holes.set_len(40 * MIB).unwrap();
    holes.write_all_at(b"in the middle", 20 * MIB).unwrap();
    let strange = std::ffi::OsStr::from_bytes(STRANGE_NAME);
    fs::write(root.join("srv").join(strange), "strange").unwrap();
    for (name, target) in [
        ("absolute", "/etc/hostname"),
        ("out", "../../../../etc/passwd"),
    ] {
        std::os::unix::fs::symlink(target, root.join("srv").join(name)).unwrap();
    }
    run(Command::new("mkfifo").arg(root.join("srv/pipe")));
}

/// A file system in a file.
#[derive(Clone, Copy, Debug)]
pub enum Foreign {
    /// With a label.
    Ext4,
    /// With a label.
    Xfs,
    /// As mkfs.btrfs makes it.
    Btrfs,
    /// Of a folder, without what FAT cannot hold.
    Vfat,
    /// One file in the root.
    Ntfs,
    /// A group `vg-0` with the volume `data`, which has ext4.
    Lvm,
    /// Swap space.
    Swap,
    /// The mark of an encrypted volume, and nothing else.
    Luks,
}

impl Foreign {
    /// Makes it in a new file.
    pub fn make(self, path: &Path, size_mib: u64, tree: &Path) {
        let file = File::create_new(path).unwrap();
        file.set_len(size_mib * MIB).unwrap();
        match self {
            Foreign::Ext4 => {
                let mut mke2fs = Command::new("/sbin/mke2fs");
                mke2fs.args(["-q", "-t", "ext4", "-L", "linux", "-d"]);
                run(mke2fs.arg(tree).arg(path));
            }
            Foreign::Xfs => make_xfs(path, tree),
            Foreign::Btrfs => {
                let mut mkfs = Command::new("/sbin/mkfs.btrfs");
                run(mkfs.args(["-q", "--rootdir"]).arg(tree).arg(path));
            }
            Foreign::Vfat => {
                run(Command::new("/sbin/mkfs.vfat")
                    .args(["-n", "EFI"])
                    .arg(path));
                let mut copy = Command::new("mcopy");
                copy.arg("-s")
                    .arg("-i")
                    .arg(path)
                    .arg(tree.join("etc"))
                    .arg("::/");
                run(&mut copy);
            }
            Foreign::Ntfs => {
                let mut mkntfs = Command::new("/sbin/mkntfs");
                run(mkntfs.args(["-q", "-F", "-f", "-L", "windows"]).arg(path));
                let mut copy = Command::new("ntfscp");
                copy.arg("-q")
                    .arg(path)
                    .arg(tree.join("usr/bin/noise"))
                    .arg("/noise");
                run(&mut copy);
            }
            Foreign::Lvm => make_lvm(path, size_mib, tree),
            Foreign::Swap => {
                run(Command::new("/sbin/mkswap").arg(path));
            }
            Foreign::Luks => file.write_all_at(b"LUKS\xba\xbe\0\x02", 0).unwrap(),
        }
    }
}

/// From a prototype file, whose lines say what goes where (mkfs.xfs(8), `-p`).
fn make_xfs(path: &Path, tree: &Path) {
    let prototype = path.with_extension("prototype");
    let noise = tree.join("usr/bin/noise");
    let lines = format!(
        "/\n0 0\nd--755 0 0\netc d--755 0 0\nhostname ---644 0 0 {}\n$\nnoise ---600 7 8 {}\n$\n",
        tree.join("etc/hostname").display(),
        noise.display()
    );
    fs::write(&prototype, lines).unwrap();
    let mut mkfs = Command::new("/sbin/mkfs.xfs");
    mkfs.args(["-q", "-f", "-L", "xfiles", "-p"])
        .arg(&prototype)
        .arg(path);
    run(&mut mkfs);
}

/// Moves a file's content to a place on a disk, without what is zero.
fn move_into(disk: &File, at_mib: u64, from: &Path) {
    let content = fs::read(from).unwrap();
    for (number, block) in content.chunks(MIB as usize).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            let offset = (at_mib + number as u64) * MIB;
            disk.write_all_at(block, offset).unwrap();
        }
    }
    fs::remove_file(from).unwrap();
}

/// A GPT disk of these parts, in their order, at whole mebibytes.
pub fn make_gpt(path: &Path, parts: &[(Foreign, u64)], tree: &Path) {
    let disk = File::create_new(path).unwrap();
    let mut script = String::from("label: gpt\n");
    let mut start_mib = 1;
    for (number, (foreign, size_mib)) in parts.iter().enumerate() {
        let part: PathBuf = path.with_extension(format!("part{number}"));
        foreign.make(&part, *size_mib, tree);
        move_into(&disk, start_mib, &part);
        let sectors = MIB / SECTOR_BYTES;
        let (start, size) = (start_mib * sectors, size_mib * sectors);
        script.push_str(&format!("start={start},size={size},type=linux\n"));
        start_mib += size_mib;
    }
    disk.set_len((start_mib + 1) * MIB).unwrap();
    let input = path.with_extension("sfdisk");
    fs::write(&input, script).unwrap();
    let mut sfdisk = Command::new("/sbin/sfdisk");
    run(sfdisk
        .arg("-q")
        .arg(path)
        .stdin(File::open(&input).unwrap()));
}

/// One physical volume with one linear logical volume, by LVM2's text format (its
/// `lib/format_text/layout.h`, and what `pvcreate` and `lvcreate` write).
fn make_lvm(path: &Path, size_mib: u64, tree: &Path) {
    const EXTENT_MIB: u64 = 4;
    const METADATA_AT: u64 = 4096;
    let disk = File::options().write(true).open(path).unwrap();
    let extents = (size_mib - 1) / EXTENT_MIB;
    let volume = path.with_extension("volume");
    Foreign::Ext4.make(&volume, extents * EXTENT_MIB, tree);
    move_into(&disk, 1, &volume);

    let id = |letter: &str| letter.repeat(32);
    let dashed = |letter: &str| {
        let parts = [6, 4, 4, 4, 4, 4, 6].map(|n| letter.repeat(n));
        parts.join("-")
    };
    let dev_size = size_mib * (MIB / SECTOR_BYTES);
    let text = format!(
        "vg-0 {{\nid = \"{}\"\nseqno = 1\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \
         \"WRITE\"]\nflags = []\nextent_size = 8192\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\
         physical_volumes {{\npv0 {{\nid = \"{}\"\ndevice = \"/dev/none\"\nstatus = \
         [\"ALLOCATABLE\"]\nflags = []\ndev_size = {dev_size}\npe_start = 2048\npe_count = \
         {extents}\n}}\n}}\nlogical_volumes {{\ndata {{\nid = \"{}\"\nstatus = [\"READ\", \"WRITE\", \
         \"VISIBLE\"]\nflags = []\nsegment_count = 1\nsegment1 {{\nstart_extent = 0\nextent_count = \
         {extents}\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 0]\n}}\n}}\n}}\n}}\n\
         contents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\ncreation_host = \
         \"none\"\ncreation_time = 1\n\0",
        dashed("g"),
        dashed("p"),
        dashed("v")
    );
    let metadata_size = MIB - METADATA_AT;

    let mut label = vec![0; SECTOR_BYTES as usize];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[20..24].copy_from_slice(&32_u32.to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(id("p").as_bytes());
    // Size, data areas and their end, metadata areas and their end.
    let places = [
        size_mib * MIB,
        MIB,
        0,
        0,
        0,
        METADATA_AT,
        metadata_size,
        0,
        0,
    ];
    for (at, value) in places.iter().enumerate() {
        let from = 64 + at * 8;
        label[from..from + 8].copy_from_slice(&value.to_le_bytes());
    }
    let sum = lvm_crc(&label[20..]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.write_all_at(&label, SECTOR_BYTES).unwrap();

    let mut header = vec![0; SECTOR_BYTES as usize];
    header[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    header[20..24].copy_from_slice(&1_u32.to_le_bytes());
    header[24..32].copy_from_slice(&METADATA_AT.to_le_bytes());
    header[32..40].copy_from_slice(&metadata_size.to_le_bytes());
    header[40..48].copy_from_slice(&SECTOR_BYTES.to_le_bytes());
    header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
    header[56..60].copy_from_slice(&lvm_crc(text.as_bytes()).to_le_bytes());
    let sum = lvm_crc(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    disk.write_all_at(&header, METADATA_AT).unwrap();
    disk.write_all_at(text.as_bytes(), METADATA_AT + SECTOR_BYTES)
        .unwrap();
}

/// CRC-32 of LVM: the usual reversed polynomial with a beginning of its own, and no inversion.
fn lvm_crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| match crc & 1 {
            1 => crc >> 1 ^ 0xedb8_8320,
            _ => crc >> 1,
        })
    })
}

/// A kernel and its modules' folder, as `tools/setup` unpacks them.
pub fn kernel() -> (PathBuf, PathBuf) {
    let folder = crate::cache::folder().join("kernel");
    (folder.join("vmlinuz"), folder.join("all"))
}
