//! A kernel of this host, and which of its modules the machine needs.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Settings;
use super::error::ApplianceError;
use super::program;
use crate::guest::{BASE, Plan};

/// Modules by what they are loaded for; what a kernel has built in is not found, and not missed.
const WANTED: &[(&str, &[&str])] = &[
    (
        BASE,
        &[
            "virtio_pci",
            "virtio_blk",
            "virtio_console",
            // Asked for by name in a system with modprobe.
            "crc32c_generic",
            "crc32c_intel",
            "libcrc32c",
            "crc64",
        ],
    ),
    ("ext4", &["ext4"]),
    ("xfs", &["xfs"]),
    (
        "btrfs",
        &[
            "xxhash_generic",
            "sha256_generic",
            "blake2b_generic",
            "btrfs",
        ],
    ),
    (
        "vfat",
        &[
            "nls_cp437",
            "nls_iso8859_1",
            "nls_ascii",
            "nls_utf8",
            "vfat",
        ],
    ),
    ("exfat", &["nls_utf8", "exfat"]),
    ("iso9660", &["nls_utf8", "isofs"]),
    ("squashfs", &["squashfs"]),
    ("f2fs", &["f2fs"]),
    ("ntfs3", &["nls_utf8", "ntfs3"]),
    ("fuse", &["fuse"]),
    (
        "lvm",
        &[
            "dm_mod",
            "dm_mirror",
            "dm_snapshot",
            "dm_thin_pool",
            "dm_cache",
            "dm_cache_smq",
            "dm_raid",
            "dm_writecache",
            "dm_integrity",
            "raid1",
            "raid10",
            "raid456",
        ],
    ),
];

/// A kernel and its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The one that is set, or the best of this host's.
    pub(super) fn find(settings: &Settings) -> Result<Kernel, ApplianceError> {
        let kernel = Self::choose(settings)?;
        // Some distributions let root alone read it; QEMU's words for that are less clear.
        fs::File::open(&kernel.image).map_err(ApplianceError::file("read", &kernel.image))?;
        Ok(kernel)
    }

    fn choose(settings: &Settings) -> Result<Kernel, ApplianceError> {
        if let Some(image) = &settings.kernel {
            let modules = settings.modules.clone();
            let modules = modules.or_else(|| modules_of(version_of(image)?));
            return Ok(Kernel {
                image: image.clone(),
                modules: modules.ok_or(ApplianceError::NoKernel)?,
            });
        }
        Self::best()
    }

    fn best() -> Result<Kernel, ApplianceError> {
        let mut found = installed();
        let running = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        // The running one works on this host; of others the newest.
        found.sort_by_key(|(version, time, _)| (*version == running, *time));
        let (_, _, kernel) = found.pop().ok_or(ApplianceError::NoKernel)?;
        Ok(kernel)
    }

    /// The modules' files by the names that they get in the machine, and when which is loaded.
    pub(super) fn plan(&self) -> Result<(Plan, BTreeMap<String, Vec<u8>>), ApplianceError> {
        let mut modules = Modules {
            files: HashMap::new(),
            read: BTreeMap::new(),
        };
        index(&self.modules, 0, &mut modules.files)
            .map_err(ApplianceError::file("read", &self.modules))?;
        let mut plan = Plan::default();
        for (group, names) in WANTED {
            let mut order = Vec::new();
            for name in *names {
                modules.add(name, &mut order)?;
            }
            plan.groups.insert((*group).to_owned(), order);
        }
        Ok((plan, modules.read))
    }
}

/// The kernel that a machine gets where none is set.
///
/// # Errors
/// [`ApplianceError::NoKernel`].
pub fn default_kernel() -> Result<PathBuf, ApplianceError> {
    Kernel::best().map(|kernel| kernel.image)
}

fn version_of(image: &Path) -> Option<&str> {
    image.file_name()?.to_str()?.strip_prefix("vmlinuz-")
}

fn modules_of(version: &str) -> Option<PathBuf> {
    let folder = Path::new("/lib/modules").join(version);
    folder.join("kernel").is_dir().then_some(folder)
}

/// Kernels with their modules, with version and time of installation.
fn installed() -> Vec<(String, std::time::SystemTime, Kernel)> {
    let entries = fs::read_dir("/lib/modules").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let version = entry.file_name().into_string().ok()?;
        let modules = modules_of(&version)?;
        // Where Debian and its kin have it, and where Fedora and its kin have it.
        let images = [
            Path::new("/boot").join(format!("vmlinuz-{version}")),
            modules.join("vmlinuz"),
        ];
        let image = images.into_iter().find(|path| path.is_file())?;
        let time = fs::metadata(&image).ok()?.modified().ok()?;
        Some((version, time, Kernel { image, modules }))
    });
    found.collect()
}

/// Notes every module below a folder by its name.
fn index(folder: &Path, depth: usize, files: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    const MAX_DEPTH: usize = 16;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        // `build` and `source` are links to elsewhere.
        if kind.is_dir() && depth < MAX_DEPTH {
            index(&entry.path(), depth + 1, files)?;
        } else if kind.is_file()
            && let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko")
        {
            files.insert(normal(name), entry.path());
        }
    }
    Ok(())
}

/// `-` and `_` are the same in names of modules.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

struct Modules {
    files: HashMap<String, PathBuf>,
    /// Plain modules by their name in the machine.
    read: BTreeMap<String, Vec<u8>>,
}

impl Modules {
    /// Adds a module after those that it depends on.
    fn add(&mut self, name: &str, order: &mut Vec<String>) -> Result<(), ApplianceError> {
        let name = normal(name);
        let file = format!("{name}.ko");
        if order.contains(&file) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            return Ok(());
        };
        if !self.read.contains_key(&file) {
            let plain = unfold(path)?;
            self.read.insert(file.clone(), plain);
        }
        for below in depends(&self.read[&file]) {
            // Dependencies of modules are no rings; a wrong file of the host is not followed for ever.
            if below != name && order.len() < 100 {
                self.add(&below, order)?;
            }
        }
        order.push(file);
        Ok(())
    }
}

/// Reads a module, whatever it is compressed with.
fn unfold(path: &Path) -> Result<Vec<u8>, ApplianceError> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("zst") => {
            let file = program::read(path)?;
            let plain = zstd::stream::decode_all(file.as_slice());
            return plain.map_err(ApplianceError::file("unfold", path));
        }
        Some("xz") => ("xz", "xz-utils"),
        Some("gz") => ("gzip", "gzip"),
        _ => return program::read(path),
    };
    let output = Command::new(tool.0)
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|source| ApplianceError::Program {
        program: tool.0.into(),
        package: tool.1,
        source,
    })?;
    if !output.status.success() {
        return Err(ApplianceError::Failed {
            program: format!("{} -dc {}", tool.0, path.display()),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(output.stdout)
}

/// Names of the modules that a module depends on: `depends=a,b` in its section `.modinfo`, whose
/// strings end with NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let at = module
        .windows(KEY.len())
        .enumerate()
        .position(|(at, window)| window == KEY && (at == 0 || module[at - 1] == 0));
    let Some(at) = at else {
        return Vec::new();
    };
    let list = &module[at + KEY.len()..];
    let end = list
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(list.len());
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, depends: &str| {
            let text = format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(dir.path().join(name), text).unwrap();
        };
        write("ext4.ko", "jbd2,crc16");
        write("jbd2.ko", "crc16");
        write("crc16.ko", "");
        let kernel = Kernel {
            image: PathBuf::new(),
            modules: dir.path().to_owned(),
        };
        let (plan, files) = kernel.plan().unwrap();
        assert_eq!(plan.groups["ext4"], ["crc16.ko", "jbd2.ko", "ext4.ko"]);
        assert!(plan.groups["xfs"].is_empty());
        assert_eq!(files.len(), 3);
    }

    #[test]
    fn dependencies_are_whole_strings() {
        assert_eq!(
            depends(b"softdepends=x\0depends=crc-t10dif,b\0"),
            ["crc_t10dif", "b"]
        );
        assert!(depends(b"depends=\0").is_empty());
        assert!(depends(b"no").is_empty());
    }
}
