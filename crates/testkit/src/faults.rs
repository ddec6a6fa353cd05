//! Places where writing fails: a small file system that fills up, and a folder
//! that is read-only even for root.

use std::path::Path;
use std::process::Command;

use crate::process::{Workdir, run, try_run};

/// A file system in memory of a settled size.
#[derive(Debug)]
pub struct SmallTmpfs {
    mount: Mount,
}

impl SmallTmpfs {
    /// Mounts it. `None`, with a line on stderr, where mounting is not allowed.
    pub fn mount(size_kib: u64) -> Option<SmallTmpfs> {
        let mount = Mount::tmpfs(&format!("size={size_kib}k,mode=777"))?;
        Some(SmallTmpfs { mount })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Fills what is left of it with a file `filler`, so that the next write fails.
    pub fn fill(&self) {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}", self.path().join("filler").display()));
        let output = dd.output().expect("starting dd");
        assert!(
            !output.status.success(),
            "dd ended before the file system was full"
        );
    }

    /// Takes the filler away again.
    pub fn unfill(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("removing the filler");
    }
}

/// A folder in which nothing can be created.
#[derive(Debug)]
pub struct ReadOnlyDir {
    mount: Mount,
}

impl ReadOnlyDir {
    /// Lets `prepare` fill the folder, then closes it. `None` as for [`SmallTmpfs`].
    pub fn new(prepare: impl FnOnce(&Path)) -> Option<ReadOnlyDir> {
        let mount = Mount::tmpfs("mode=777")?;
        prepare(mount.path());
        run(Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(mount.path()));
        Some(ReadOnlyDir { mount })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

#[derive(Debug)]
struct Mount {
    folder: Workdir,
}

impl Mount {
    fn tmpfs(options: &str) -> Option<Mount> {
        let folder = Workdir::with_prefix("tinymount-");
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path());
        match try_run(&mut command) {
            Ok(_) => Some(Mount { folder }),
            Err(error) => {
                eprintln!("testkit: no file system to fail on, this part is left out: {error:#}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, so that a file still open cannot keep it.
        let _ = try_run(Command::new("umount").arg("-l").arg(self.folder.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_refuses() {
        let Some(small) = SmallTmpfs::mount(256) else {
            return;
        };
        small.fill();
        assert!(std::fs::write(small.path().join("more"), [0; 8192]).is_err());
        small.unfill();
        std::fs::write(small.path().join("more"), [0; 8192]).unwrap();
        let path = small.path().to_owned();
        drop(small);
        assert!(!path.exists());
    }

    #[test]
    fn a_read_only_folder_refuses() {
        let Some(folder) = ReadOnlyDir::new(|path| std::fs::write(path.join("a"), "x").unwrap())
        else {
            return;
        };
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"x");
        assert!(std::fs::write(folder.path().join("b"), "x").is_err());
    }
}
