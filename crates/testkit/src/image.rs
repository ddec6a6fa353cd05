//! What a tiny guest boots: the kernel that `tools/setup` unpacked, and an
//! initramfs of busybox, the ticker, kernel modules and mke2fs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::cpio::Archive;
use crate::process::try_run;

const TICKER: &str = include_str!("../guest/ticker.c");
const INIT: &str = include_str!("../guest/init");
const POWER_BUTTON: &str = include_str!("../guest/power-button");
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const MKE2FS: &str = "/sbin/mke2fs";

/// Kernel and initramfs of the tiny guests.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// An uncompressed or self-extracting kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl GuestImage {
    /// Builds what is not in the cache yet.
    pub fn build() -> Result<GuestImage> {
        let kernel_folder = cache::folder().join("kernel");
        let kernel = kernel_folder.join("vmlinuz");
        if !kernel.exists() {
            bail!(
                "no guest kernel in {}: run tools/setup",
                kernel_folder.display()
            );
        }
        let ticker = std::fs::read(build_ticker()?)?;
        let parts = Parts::gather(&kernel_folder.join("modules"), ticker)?;
        let name = format!("initramfs-{}.cpio", parts.hash());
        let initramfs = cache::file(&name, |path| {
            std::fs::write(path, parts.archive()).context("writing the initramfs")
        })?;
        Ok(GuestImage { kernel, initramfs })
    }
}

/// Compiles the ticker for a guest without libraries.
fn build_ticker() -> Result<PathBuf> {
    let name = format!("ticker-{}", cache::content_hash(&[TICKER.as_bytes()]));
    cache::file(&name, |path| {
        let source = path.with_extension("c");
        std::fs::write(&source, TICKER)?;
        let mut cc = std::process::Command::new("cc");
        cc.args(["-static", "-O2", "-pthread", "-o"])
            .arg(path)
            .arg(&source);
        try_run(&mut cc).context("compiling the guest's ticker")?;
        std::fs::remove_file(&source).context("removing the ticker's source")
    })
}

/// The files of the initramfs, by their names in it.
struct Parts {
    programs: Vec<(String, Vec<u8>)>,
    files: Vec<(String, Vec<u8>)>,
}

impl Parts {
    fn gather(modules: &Path, ticker: Vec<u8>) -> Result<Parts> {
        let busybox = BUSYBOX.iter().find(|path| Path::new(path).exists());
        let busybox = busybox.context("no busybox: run tools/setup")?;
        let mut parts = Parts {
            programs: Vec::new(),
            files: Vec::new(),
        };
        parts.program("bin/busybox", std::fs::read(busybox)?);
        parts.program("bin/ticker", ticker);
        parts.program("init", INIT.into());
        parts.program("etc/acpi/PWRF/00000080", POWER_BUTTON.into());
        parts.add_modules(modules)?;
        parts.add_mke2fs()?;
        Ok(parts)
    }

    fn program(&mut self, name: &str, content: Vec<u8>) {
        self.programs.push((name.to_owned(), content));
    }

    fn add_modules(&mut self, folder: &Path) -> Result<()> {
        let order =
            std::fs::read_to_string(folder.join("order")).context("reading the module order")?;
        for name in order.lines() {
            let content =
                std::fs::read(folder.join(name)).with_context(|| format!("reading {name}"))?;
            self.files.push((format!("modules/{name}"), content));
        }
        self.files
            .push(("modules/order".to_owned(), order.into_bytes()));
        Ok(())
    }

    /// busybox makes only ext2; the real thing comes with its libraries.
    fn add_mke2fs(&mut self) -> Result<()> {
        let listing = try_run(std::process::Command::new("ldd").arg(MKE2FS))?;
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        for word in listing
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let content = std::fs::read(word).with_context(|| format!("reading {word}"))?;
            self.program(word.trim_start_matches('/'), content);
        }
        self.program(
            "sbin/mke2fs",
            std::fs::read(MKE2FS).context("reading mke2fs")?,
        );
        self.files.push((
            "etc/mke2fs.conf".to_owned(),
            std::fs::read("/etc/mke2fs.conf")?,
        ));
        Ok(())
    }

    fn hash(&self) -> String {
        let all = self.programs.iter().chain(&self.files);
        let flat: Vec<&[u8]> = all
            .flat_map(|(name, content)| [name.as_bytes(), content.as_slice()])
            .collect();
        cache::content_hash(&flat)
    }

    fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for name in self.directories() {
            archive.directory(&name);
        }
        archive.character_device("dev/console", 5, 1);
        for (name, content) in &self.programs {
            archive.program(name, content);
        }
        for (name, content) in &self.files {
            archive.file(name, content);
        }
        archive.finish()
    }

    /// Every folder that a file is in, outer ones first.
    fn directories(&self) -> Vec<String> {
        let mut found = vec!["dev".to_owned()];
        for (name, _) in self.programs.iter().chain(&self.files) {
            for (at, _) in name.match_indices('/') {
                found.push(name[..at].to_owned());
            }
        }
        found.sort();
        found.dedup();
        found
    }
}
