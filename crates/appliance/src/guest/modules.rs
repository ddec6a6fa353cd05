//! Kernel modules: those that every machine needs, and those of a file system when one is met.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;
use serde::{Deserialize, Serialize};

/// Which modules there are, in the initramfs.
pub(crate) const PLAN: &str = "/modules/plan.json";

/// For what which files in `/modules` are loaded, in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// By `base`, or the name of a file system or driver.
    pub(crate) groups: BTreeMap<String, Vec<String>>,
}

/// Group of what is loaded at once.
pub(crate) const BASE: &str = "base";

/// Modules in the initramfs.
pub(super) struct Modules {
    plan: Plan,
}

impl Modules {
    /// Loads what the machine's devices need.
    pub(super) fn load_base() -> io::Result<Modules> {
        let plan = serde_json::from_slice(&fs::read(PLAN)?)?;
        let modules = Modules { plan };
        modules.load(BASE);
        Ok(modules)
    }

    /// Loads a group; what cannot be loaded will be missed by those who need it.
    pub(super) fn load(&self, group: &str) {
        for name in self.plan.groups.get(group).into_iter().flatten() {
            if let Err(error) = load(&Path::new("/modules").join(name)) {
                eprintln!("appliance: module {name}: {error}");
            }
        }
    }

    /// Whether the kernel knows a file system, now that its modules are loaded.
    pub(super) fn knows(&self, kind: &str) -> bool {
        self.load(kind);
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
    }
}

fn load(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        // Loaded, or built in, already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
