//! `ID[:DISK[/PATH]]`: a place in a snapshot, as users write it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, bail};
use vmtwin_appliance::Name;

/// A place in a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) snapshot: String,
    pub(crate) disk: Option<String>,
    /// From the root of a file system; begins with `/`.
    pub(crate) path: Name,
}

impl Address {
    /// Takes it apart.
    pub(crate) fn parse(text: &OsStr) -> Result<Address> {
        let shown = text.to_string_lossy();
        let (snapshot, rest) = split(text.as_bytes(), b':');
        let (disk, path) = match rest {
            Some(rest) => {
                let at = rest.iter().position(|byte| *byte == b'/');
                let (disk, path) = rest.split_at(at.unwrap_or(rest.len()));
                (Some(disk), path)
            }
            None => (None, &b""[..]),
        };
        let (Ok(snapshot), Ok(disk)) = (
            str::from_utf8(snapshot),
            disk.map(str::from_utf8).transpose(),
        ) else {
            bail!("'{shown}' is no ID:DISK/PATH");
        };
        if snapshot.is_empty() || disk == Some("") {
            bail!("'{shown}' is no ID:DISK/PATH; try: vmtwin snapshot ls latest");
        }
        if path.contains(&0) || path.len() > 4096 {
            bail!("'{shown}' has a path that no system takes");
        }
        Ok(Address {
            snapshot: snapshot.to_owned(),
            disk: disk.map(str::to_owned),
            path: match path {
                b"" => Name(b"/".to_vec()),
                path => Name(path.to_vec()),
            },
        })
    }
}

fn split(bytes: &[u8], at: u8) -> (&[u8], Option<&[u8]>) {
    match bytes.iter().position(|byte| *byte == at) {
        Some(place) => (&bytes[..place], Some(&bytes[place + 1..])),
        None => (bytes, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Option<(String, Option<String>, Vec<u8>)> {
        let address = Address::parse(OsStr::from_bytes(text)).ok()?;
        Some((address.snapshot, address.disk, address.path.0))
    }

    #[test]
    fn parts() {
        let some = |id: &str, disk: Option<&str>, path: &[u8]| {
            Some((id.to_owned(), disk.map(str::to_owned), path.to_vec()))
        };
        assert_eq!(parse(b"latest"), some("latest", None, b"/"));
        assert_eq!(parse(b"1a:disk0"), some("1a", Some("disk0"), b"/"));
        assert_eq!(
            parse(b"1a:disk0/a:b/\xff"),
            some("1a", Some("disk0"), b"/a:b/\xff")
        );
        for wrong in [&b""[..], b":disk0", b"1a:", b"1a:/etc", b"\xff:disk0"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
