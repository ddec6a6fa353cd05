//! Scratch images in a process of their own, so that the point outlives the guest.
//!
//! A qcow2 image inside the guest's QEMU holds part of its tables in that process's memory: killed
//! with it, the image is not the point. A `qemu-storage-daemon` of ours holds the images instead;
//! the guest's filters write to it over NBD. When the guest is gone and the daemon has ended, a
//! scratch image over the guest's disk is the point.
//!
//! A daemon that hangs or ends breaks the point, never the guest: see `disks`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::CaptureError;
use super::disks::View;
use crate::process::without_secrets;

/// How long it may take to listen, and to end.
const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Storage {
    child: Child,
}

/// The socket of the daemon of the capture in `dir`.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("storage.sock")
}

impl Storage {
    /// Starts it on the scratch images of `views`, each exported under its node's name.
    pub(crate) fn start(dir: &Path, views: &[View]) -> Result<Storage, CaptureError> {
        let socket = socket(dir);
        let failed = |reason: String| CaptureError::Scratch {
            path: socket.clone(),
            reason,
        };
        let mut command = Command::new("qemu-storage-daemon");
        for view in views {
            let (node, path) = (&view.scratch, view.scratch_path.display());
            // As JSON: a path may hold a comma.
            let image = serde_json::json!({
                "driver": "qcow2", "node-name": node, "discard": "unmap",
                "file": {"driver": "file", "filename": path.to_string()},
            });
            command.arg("--blockdev").arg(image.to_string());
        }
        let server = serde_json::json!({"addr": {"type": "unix", "path": socket}});
        command.arg("--nbd-server").arg(server.to_string());
        for view in views {
            let node = &view.scratch;
            let export = serde_json::json!({
                "type": "nbd", "id": node, "node-name": node, "name": node, "writable": true,
            });
            command.arg("--export").arg(export.to_string());
        }
        let log = std::fs::File::create(dir.join("storage.log"))
            .map_err(|error| failed(error.to_string()))?;
        let child = without_secrets(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| failed(format!("cannot run qemu-storage-daemon: {error}")))?;
        let mut storage = Storage { child };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = !matches!(storage.child.try_wait(), Ok(None));
            if ended || begun.elapsed() > LIMIT {
                let log = std::fs::read_to_string(dir.join("storage.log"));
                return Err(failed(log.unwrap_or_default().trim().to_owned()));
            }
            std::thread::sleep(POLL);
        }
        Ok(storage)
    }

    /// Ends it in order: the images are whole and closed then.
    pub(crate) fn finish(mut self) -> Result<(), CaptureError> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|errno| CaptureError::Io(errno.into()))?;
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match self.child.try_wait().map_err(CaptureError::Io)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let reason = format!("the storage daemon ended with {status}");
                    return Err(CaptureError::PointLost { reason });
                }
                None => std::thread::sleep(POLL),
            }
        }
        let reason = "the storage daemon did not end".to_owned();
        Err(CaptureError::PointLost { reason })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
