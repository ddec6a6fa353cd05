//! The emulator of a guest's TPM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(20);

/// Where the emulator of a guest in this folder listens.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("swtpm.sock")
}

/// A `swtpm` with new state in the guest's folder. It ends with QEMU's connection, and with this
/// value at the latest.
#[derive(Debug)]
pub(crate) struct Swtpm(Child);

impl Swtpm {
    pub(crate) fn start(folder: &Path) -> Result<Swtpm> {
        let state = folder.join("tpm");
        std::fs::create_dir(&state).context("making the folder of the TPM's state")?;
        let log = File::create(folder.join("swtpm.log"))?;
        let socket = socket(folder);
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate", &format!("dir={}", state.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting swtpm (tools/setup installs it)")?;
        let mut swtpm = Swtpm(child);
        let end = Instant::now() + PATIENCE;
        while !socket.exists() {
            if swtpm.0.try_wait()?.is_some() || Instant::now() > end {
                bail!("swtpm made no socket");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It makes the name an instant before it listens.
        std::thread::sleep(Duration::from_millis(50));
        Ok(swtpm)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
