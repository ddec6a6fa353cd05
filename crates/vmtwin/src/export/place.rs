//! Where an export listens: a socket of its own in the home folder, a path, or TCP.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use vmtwin_nbd::Listener;

use crate::home::Home;

/// Folders in the run folder begin with this.
const PREFIX: &str = "export-";
const SOCKET: &str = "nbd.sock";

/// A place to listen. What it made is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) listener: Listener,
    address: Address,
    /// A folder made for the socket.
    folder: Option<PathBuf>,
}

#[derive(Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    /// A socket in a folder that only this user can enter.
    pub(crate) fn in_home(home: &Home) -> Result<Place> {
        let run = home.run_dir()?;
        remove_left(&run);
        let folder = run.join(format!("{PREFIX}{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let socket = folder.join(SOCKET);
        let bound = Place::unix(&socket);
        if bound.is_err() {
            let _ = std::fs::remove_dir(&folder);
        }
        let mut place = bound?;
        place.folder = Some(folder);
        Ok(place)
    }

    /// A socket at a path of the user's choice, for this user alone.
    pub(crate) fn unix(socket: &Path) -> Result<Place> {
        let socket = std::path::absolute(socket)?;
        remove_dead_socket(&socket)?;
        // Before any thread is started: the mask is the process's.
        let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&socket);
        rustix::process::umask(mask);
        let listener = bound.with_context(|| format!("cannot listen on {}", socket.display()))?;
        Ok(Place {
            listener: Listener::Unix(listener),
            address: Address::Unix(socket),
            folder: None,
        })
    }

    /// TCP; on addresses of this machine alone unless `remote`.
    pub(crate) fn tcp(address: &str, remote: bool) -> Result<Place> {
        let found = address
            .to_socket_addrs()
            .with_context(|| format!("'{address}' is no HOST:PORT"))?;
        let found: Vec<SocketAddr> = found.collect();
        if !remote && !found.iter().all(|address| address.ip().is_loopback()) {
            bail!(
                "{address} can be reached from other machines, and NBD here has no password and no \
                 TLS; use 127.0.0.1 and a tunnel, or give --allow-remote"
            );
        }
        let listener = TcpListener::bind(found.as_slice())
            .with_context(|| format!("cannot listen on {address}"))?;
        Ok(Place {
            address: Address::Tcp(listener.local_addr()?),
            listener: Listener::Tcp(listener),
            folder: None,
        })
    }

    /// URI of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        let export = escape(export.as_bytes());
        match &self.address {
            Address::Unix(socket) => {
                let socket = escape(socket.as_os_str().as_encoded_bytes());
                format!("nbd+unix:///{export}?socket={socket}")
            }
            Address::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }

    /// Its socket, if it has one.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match &self.address {
            Address::Unix(socket) => Some(socket),
            Address::Tcp(_) => None,
        }
    }

    /// The folder that was made for it, for this user alone.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Whether anyone on this machine, at least, can connect.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.address, Address::Tcp(_))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Address::Unix(socket) = &self.address {
            let _ = std::fs::remove_file(socket);
        }
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Removes the folders of exports that were killed: nobody listens there.
fn remove_left(run: &Path) {
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let socket = entry.path().join(SOCKET);
        if ours && is_dead(&socket) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_dead(socket: &Path) -> bool {
    let connected = UnixStream::connect(socket);
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A socket that nobody listens on is what a killed server left; all else stays.
fn remove_dead_socket(socket: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(socket) else {
        return Ok(());
    };
    if !found.file_type().is_socket() || !is_dead(socket) {
        bail!(
            "{} is there already; give another --socket",
            socket.display()
        );
    }
    std::fs::remove_file(socket).with_context(|| format!("cannot remove {}", socket.display()))
}

/// Percent-encoding of all that is not plain in a URI (RFC 3986).
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        let place = Place::unix(&path).unwrap();
        assert!(place.uri("disk0").ends_with("/a%20b.sock"));
        assert!(Place::unix(&path).is_err());
        drop(place);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        drop(Place::unix(&path).unwrap());
        std::fs::write(&path, "a file").unwrap();
        assert!(Place::unix(&path).is_err());
    }

    #[test]
    fn other_machines_only_where_told() {
        assert!(Place::tcp("127.0.0.1:0", false).is_ok());
        assert!(Place::tcp("0.0.0.0:0", false).is_err());
        assert!(Place::tcp("0.0.0.0:0", true).is_ok());
        assert!(Place::tcp("127.0.0.1", false).is_err());
    }
}
