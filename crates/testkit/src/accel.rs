//! KVM or emulation: found out by booting, since a `/dev/kvm` that opens may still
//! run no ordinary kernel.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cache;
use crate::image::GuestImage;

/// With KVM the probe takes about a second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accel {
    /// `VMTWIN_TEST_ACCEL`, or KVM if a kernel boots with it. The finding is kept
    /// until the host boots again.
    pub fn detect() -> Accel {
        match std::env::var("VMTWIN_TEST_ACCEL").as_deref() {
            Ok("kvm") => return Accel::Kvm,
            Ok("tcg") => return Accel::Tcg,
            Ok("") | Err(_) => {}
            Ok(other) => panic!("VMTWIN_TEST_ACCEL is '{other}', not kvm or tcg"),
        }
        if !Path::new("/dev/kvm").exists() {
            return Accel::Tcg;
        }
        // Before the cache is locked for the finding, since it locks the cache too.
        let Ok(image) = GuestImage::build() else {
            return Accel::Tcg;
        };
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let name = format!("accel-{}", boot_id.trim());
        let found = cache::file(&name, |path| {
            let accel = if kvm_boots(&image).unwrap_or(false) {
                Accel::Kvm
            } else {
                Accel::Tcg
            };
            std::fs::write(path, accel.name()).context("keeping the finding")
        });
        let found = found.and_then(|path| Ok(std::fs::read_to_string(path)?));
        if found.is_ok_and(|text| text == "kvm") {
            Accel::Kvm
        } else {
            Accel::Tcg
        }
    }

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    /// The processor model to go with it.
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Accel::Kvm => "host",
            Accel::Tcg => "max",
        }
    }
}

/// Boots a guest that powers itself off.
fn kvm_boots(image: &GuestImage) -> Result<bool> {
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "256",
            "-nodefaults",
        ])
        .args([
            "-display",
            "none",
            "-no-reboot",
            "-append",
            "quiet panic=-1 vmtwin.mode=probe",
        ])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting QEMU")?;
    let end = Instant::now() + PROBE_TIMEOUT;
    while Instant::now() < end {
        if let Some(status) = qemu.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    qemu.kill()?;
    qemu.wait()?;
    Ok(false)
}
