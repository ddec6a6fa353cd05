//! Programs of the host, taken into the machine: the file, and the libraries it is linked with.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::ApplianceError;

/// A program's bytes without what only debuggers read, which is most of some.
///
/// The kernel and the loader use the program headers alone (System V ABI, ELF); the sections and all
/// behind the last loaded segment are left out.
pub(super) fn without_debug_info(mut elf: Vec<u8>) -> Vec<u8> {
    const SECTIONS_AT: std::ops::Range<usize> = 0x28..0x30;
    const SECTION_COUNTS: std::ops::Range<usize> = 0x3c..0x40;
    if let Some(end) = loaded_end(&elf)
        && end >= 0x40
        && end <= elf.len()
    {
        elf.truncate(end);
        elf[SECTIONS_AT].fill(0);
        elf[SECTION_COUNTS].fill(0);
    }
    elf
}

/// Where the last segment ends, of a 64-bit little-endian program.
fn loaded_end(elf: &[u8]) -> Option<usize> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let word = |at: usize, len: usize| {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |v, b| v << 8 | u64::from(*b));
        usize::try_from(value).ok()
    };
    let (table, size, count) = (word(0x20, 8)?, word(0x36, 2)?, word(0x38, 2)?);
    let mut end = table.checked_add(size.checked_mul(count)?)?;
    for number in 0..count {
        let header = table + number * size;
        let segment = word(header + 8, 8)?.checked_add(word(header + 0x20, 8)?)?;
        end = end.max(segment);
    }
    Some(end)
}

/// The shared libraries of a program of this host, with its loader; none of a static one.
pub(super) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, ApplianceError> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ApplianceError::Program {
            program: "ldd".into(),
            package: "libc-bin",
            source,
        })?;
    // Of a static program it says so, and fails.
    Ok(named(&String::from_utf8_lossy(&output.stdout)))
}

/// `name => /path (address)` or `/path (address)`.
fn named(text: &str) -> BTreeSet<PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path);
        let path = path.trim().split(" (0x").next()?.trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

/// Reads a file of the host.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ApplianceError> {
    fs::read(path).map_err(ApplianceError::file("read", path))
}

/// The first of these folders' programs of that name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
    ]
    .iter()
    .map(|folder| Path::new(folder).join(name))
    .find(|path| path.is_file())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_without_its_debug_information() {
        use std::os::unix::fs::PermissionsExt;
        let whole = read(&std::env::current_exe().unwrap()).unwrap();
        let slim = without_debug_info(whole.clone());
        assert!(slim.len() < whole.len());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slim");
        fs::write(&path, slim).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let listed = Command::new(&path).arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("a_program_runs"));
    }

    #[test]
    fn what_is_no_program_stays() {
        for bytes in [&b""[..], b"\x7fELF", b"\x7fELF\x02\x01", &[0xff; 100]] {
            assert_eq!(without_debug_info(bytes.to_vec()), bytes);
        }
    }

    #[test]
    fn libraries_by_ldds_lines() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld.so (0x0000)\n\tlibx.so => not found\n";
        let found: Vec<_> = named(text).into_iter().collect();
        assert_eq!(
            found,
            [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so")]
        );
        assert!(named("\tnot a dynamic executable").is_empty());
    }
}
