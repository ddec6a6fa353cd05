//! File systems, mounted read-only when they are first asked for.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount};

use super::devices::{self, Device};
use super::modules::Modules;
use super::probe::{Found, LVM_MEMBER};
use super::serve::error_text;
use crate::wire::FileSystem;

/// A driver of NTFS for kernels without one, if the host has it.
pub(crate) const NTFS_3G: &str = "/sbin/ntfs-3g";

/// One file system.
struct Place {
    device: Device,
    described: FileSystem,
    root: Option<OwnedFd>,
    warning: Option<String>,
}

/// All file systems of the machine.
pub(super) struct Mounts {
    modules: Modules,
    places: Vec<Place>,
}

impl Mounts {
    /// Looks for file systems.
    pub(super) fn find(modules: Modules) -> io::Result<Mounts> {
        let found = devices::find(&modules)?;
        let places = found.into_iter().filter_map(|(device, found)| {
            let described = describe(&modules, &device, found)?;
            Some(Place {
                device,
                described,
                root: None,
                warning: None,
            })
        });
        Ok(Mounts {
            places: places.collect(),
            modules,
        })
    }

    /// All of them, by their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &FileSystem> {
        self.places.iter().map(|place| &place.described)
    }

    /// The root folder of one, and what is to be told of it.
    pub(super) fn root(&mut self, number: usize) -> Result<(&OwnedFd, Option<&str>), String> {
        let modules = &self.modules;
        let place = self.places.get_mut(number).ok_or("no such file system")?;
        if let Some(problem) = &place.described.problem {
            return Err(problem.clone());
        }
        let root = match place.root.take() {
            Some(root) => root,
            None => {
                let (root, warning) = attach(modules, place, number).map_err(|error| {
                    let why = error_text(error);
                    format!("the {} cannot be mounted: {why}", place.described.kind)
                })?;
                place.warning = warning;
                root
            }
        };
        Ok((place.root.insert(root), place.warning.as_deref()))
    }
}

/// `None` for what is empty.
fn describe(modules: &Modules, device: &Device, found: Found) -> Option<FileSystem> {
    let kind = found.kind?;
    let problem = match kind.as_str() {
        LVM_MEMBER => Some("LVM is not installed on this host: apt install lvm2".into()),
        "swap" => Some("swap space has no files".into()),
        "crypto_LUKS" | "BitLocker" => Some("it is encrypted by the guest".into()),
        "linux_raid_member" => Some("software RAID of the guest is not put together".into()),
        "ntfs" => (driver_of_ntfs(modules).is_none()).then(|| {
            "this host's kernel has no ntfs3, and ntfs-3g is not installed: apt install ntfs-3g"
                .into()
        }),
        kind => {
            (!modules.knows(kind)).then(|| format!("this host's kernel has no driver for {kind}"))
        }
    };
    Some(FileSystem {
        disks: device.disks.clone(),
        name: device.name.clone(),
        kind,
        label: found.label,
        size_bytes: device.size_bytes,
        problem,
    })
}

fn driver_of_ntfs(modules: &Modules) -> Option<&'static str> {
    if modules.knows("ntfs3") {
        return Some("ntfs3");
    }
    (Path::new(NTFS_3G).exists() && modules.knows("fuse")).then_some(NTFS_3G)
}

fn attach(
    modules: &Modules,
    place: &Place,
    number: usize,
) -> io::Result<(OwnedFd, Option<String>)> {
    let folder = PathBuf::from(format!("/mnt/{number}"));
    let folder = folder.as_path();
    fs::create_dir_all(folder)?;
    let kind = place.described.kind.as_str();
    let try_ways = |driver: &str, ways: &[&str]| mount_one_way(place, driver, folder, ways);
    // The second way of those with a journal is for one that cannot be replayed: better older than
    // nothing.
    let way = match kind {
        "ntfs" if driver_of_ntfs(modules) == Some(NTFS_3G) => mount_ntfs_3g(place, folder)?,
        "ntfs" => try_ways("ntfs3", &["iocharset=utf8"])?,
        "ext4" => try_ways(kind, &["", "noload"])?,
        "xfs" => try_ways(kind, &["nouuid", "nouuid,norecovery"])?,
        // Its top, not the subvolume that it boots from: all subvolumes are folders there.
        "btrfs" => try_ways(kind, &["subvolid=5", "subvolid=5,rescue=all"])?,
        "vfat" => try_ways(kind, &["utf8=1"])?,
        "exfat" | "iso9660" => try_ways(kind, &["iocharset=utf8"])?,
        _ => try_ways(kind, &[""])?,
    };
    let warning = (way > 0).then(|| {
        format!(
            "the {kind} of {} is damaged and was read without its journal: files may be older, or \
             not whole",
            place.described.name
        )
    });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, folder, flags, Mode::empty())?;
    Ok((root, warning))
}

/// Tries one set of options after the other; gives the number of that which worked.
fn mount_one_way(place: &Place, kind: &str, folder: &Path, ways: &[&str]) -> io::Result<usize> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let mut failure = io::Error::other("no way to mount it");
    for (number, way) in ways.iter().enumerate() {
        let options = std::ffi::CString::new(*way)?;
        match mount(&place.device.path, folder, kind, flags, options.as_c_str()) {
            Ok(()) => return Ok(number),
            Err(error) if number == 0 => failure = error.into(),
            Err(_) => {}
        }
    }
    Err(failure)
}

fn mount_ntfs_3g(place: &Place, folder: &Path) -> io::Result<usize> {
    let output = Command::new(NTFS_3G)
        .args(["-o", "ro,norecover,streams_interface=none"])
        .args([&place.device.path, folder])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(0);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(told.trim().replace('\n', "; ")))
}
