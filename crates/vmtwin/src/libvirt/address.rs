//! The address of a domain's monitor, in place of a socket's path: `libvirt:UUID@URI`.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmtwin_hypervisor::process::without_secrets;
use vmtwin_hypervisor::qmp::relay;

const SCHEME: &str = "libvirt:";

/// A domain of a libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Of the connection: `qemu:///system`.
    pub(crate) uri: String,
    /// The domain's.
    pub(crate) uuid: String,
}

impl Address {
    pub(crate) fn to_path(&self) -> PathBuf {
        PathBuf::from(format!("{SCHEME}{}@{}", self.uuid, self.uri))
    }

    /// The domain's, where the path is none of a socket.
    pub(crate) fn parse(path: &Path) -> Option<Address> {
        let (uuid, uri) = path.to_str()?.strip_prefix(SCHEME)?.split_once('@')?;
        Some(Address {
            uri: uri.to_owned(),
            uuid: uuid.to_owned(),
        })
    }

    /// Starts a relay. It is in a group of its own, so that Ctrl-C leaves it to what it undoes.
    fn start_relay(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        // Not by its path: an upgrade may have put another program there.
        let mut command = Command::new("/proc/self/exe");
        command.args(["libvirt-monitor", &self.uri, &self.uuid]);
        let mut child = without_secrets(&mut command)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        std::thread::spawn(move || child.wait());
        Ok(ours)
    }
}

/// Lets all of the process reach monitors through libvirt.
pub(crate) fn enable() {
    relay::start_by(|path| Address::parse(path).map(|address| address.start_relay()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        let address = Address {
            uri: "qemu+unix:///system?socket=/run/a@b".to_owned(),
            uuid: "5b0d7a44-4d7c-4d0f-9a0a-0d5a4c1e7a01".to_owned(),
        };
        assert_eq!(Address::parse(&address.to_path()).unwrap(), address);
        for path in ["/run/libvirt:x@y", "libvirt:x", "relative/socket"] {
            assert_eq!(Address::parse(Path::new(path)), None);
        }
    }
}
