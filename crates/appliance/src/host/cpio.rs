//! The newc form of cpio archives: what the Linux kernel unpacks as initramfs.
//!
//! An entry is `070701` and 13 fields of 8 hexadecimal digits (inode, mode, uid, gid, links, mtime,
//! size, the device's numbers and the special file's, length of the name, an unused checksum), the
//! name with a NUL, padding to 4 bytes, the content, padding to 4 bytes.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive in the making.
pub(super) struct Archive<W> {
    out: W,
    written: u64,
    entries: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Archive {
            out,
            written: 0,
            entries: 0,
            folders: BTreeSet::new(),
        }
    }

    /// A folder, with those above it.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for part in path.components() {
            if let Component::Normal(part) = part {
                if !name.is_empty() {
                    name.push('/');
                }
                name.push_str(&part.to_string_lossy());
                if self.folders.insert(name.clone()) {
                    self.entry(&name, FOLDER, &[])?;
                }
            }
        }
        Ok(())
    }

    /// A file that can be run, with the folders above it.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            self.folder(folder)?;
        }
        let name = path.to_string_lossy();
        self.entry(name.trim_start_matches('/'), PROGRAM, content)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    /// Judged by GNU cpio or busybox, whichever is there.
    #[test]
    fn cpio_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.folder(Path::new("/mnt")).unwrap();
        archive.file(Path::new("/lib/x/a"), b"12345").unwrap();
        archive.file(Path::new("/lib/b"), b"").unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-i", "-d", "-H", "newc"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        let mut file = std::fs::File::open(dir.path().join("lib/x/a")).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "12345");
        assert!(dir.path().join("mnt").is_dir() && dir.path().join("lib/b").is_file());
    }
}
