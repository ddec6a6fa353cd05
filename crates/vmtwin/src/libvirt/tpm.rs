//! The state of an emulated TPM, where libvirt's `swtpm` of a domain finds it:
//! `/var/lib/libvirt/swtpm/UUID/tpm2/`. libvirt gives it to the emulator's user when it starts one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};

const STORE: &str = "/var/lib/libvirt/swtpm";
/// In a snapshot, and in the folder of a restore.
const STORED_AS: &str = "files/tpm2-00.permall";
const NAME: &str = "tpm2-00.permall";

/// Gives the TPM state that was restored into `restored`, if there is one, to the domain with this
/// uuid. A state that is there already stays.
pub(super) fn give(restored: &Path, uuid: &str) -> Result<()> {
    let from = restored.join(STORED_AS);
    if !from.exists() {
        return Ok(());
    }
    let domain = Path::new(STORE).join(uuid);
    let dir = domain.join("tpm2");
    let given = make(&domain, 0o711)
        .and_then(|()| make(&dir, 0o700))
        .and_then(|()| copy(&from, &dir.join(NAME)));
    given.with_context(|| {
        format!(
            "the state of its TPM is in {}, but cannot be put to {}",
            from.display(),
            dir.display()
        )
    })
}

fn make(dir: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(to);
    let mut out = match opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    };
    let copied = io::copy(&mut File::open(from)?, &mut out).and_then(|_| out.sync_all());
    copied.inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}
