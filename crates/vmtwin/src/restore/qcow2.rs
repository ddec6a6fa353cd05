//! A disk as a qcow2 image, written by QEMU's own `qemu-nbd`.

use std::fs::File;
use std::io;
use std::process::{Command, Stdio};

use vmtwin_nbd::Client;
use vmtwin_repository::{Image, ImageSink};

use super::error::RestoreError;
use super::nbd_server::NbdServer;
use super::progress::Watch;
use super::raw::sink_error;
use super::sparse_sink::SparseSink;
use super::target::Partial;

/// A cluster: what qcow2 can leave out.
const CLUSTER_BYTES: usize = 64 << 10;

struct NbdSink<'a>(&'a Client);

impl ImageSink for NbdSink<'_> {
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.0
            .write_at(offset_bytes, data)
            .map_err(io::Error::other)
    }
}

/// Writes `image` to the partial file, which `file` is, and makes it durable; gives the bytes
/// written.
pub(super) fn write(
    image: &Image,
    partial: &Partial,
    file: &File,
    watch: Watch<'_>,
) -> Result<u64, RestoreError> {
    create(partial, image.size_bytes())?;
    let (server, client) = NbdServer::start(partial.path())?;
    if client.size_bytes() < image.size_bytes() {
        return Err(RestoreError::Program {
            program: "qemu-nbd",
            path: partial.path().to_owned(),
            message: format!("the image has only {} bytes", client.size_bytes()),
        });
    }
    let sink = SparseSink::new(NbdSink(&client), CLUSTER_BYTES);
    image
        .copy_to(&sink, &watch)
        .map_err(|error| sink_error(error, partial))?;
    let (written, _) = sink.finish();
    server.finish(client)?;
    file.sync_all()
        .map_err(RestoreError::file("write", partial.path()))?;
    Ok(written)
}

/// Makes the image in the file that is there, so that its permissions stay.
fn create(partial: &Partial, size_bytes: u64) -> Result<(), RestoreError> {
    let output = Command::new("qemu-img")
        .args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=65536",
            "--",
        ])
        .arg(partial.path())
        .arg(size_bytes.to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| RestoreError::NoProgram {
            program: "qemu-img",
            package: "qemu-utils",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(RestoreError::Program {
        program: "qemu-img",
        path: partial.path().to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
