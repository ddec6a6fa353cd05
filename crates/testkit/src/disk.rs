//! Disks of tiny guests, and raw copies of any disk that QEMU can read.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::{run, try_run};

/// How a disk image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Block after block, holes where nothing was written.
    Raw,
    /// QEMU's format, which can hold dirty bitmaps.
    Qcow2,
}

impl DiskFormat {
    /// The name QEMU has for it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }

    /// By the file's extension; what is not `.qcow2` is raw.
    pub fn of_path(path: &Path) -> DiskFormat {
        match path.extension() {
            Some(extension) if extension == "qcow2" => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        }
    }
}

/// A disk that a guest is to have: a new one, or an image that exists.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    format: DiskFormat,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Empty {
        size_mib: u64,
    },
    Existing(PathBuf),
    Over {
        backing: PathBuf,
        backing_format: DiskFormat,
    },
}

impl DiskSpec {
    /// A new, empty qcow2 disk.
    pub fn qcow2(size_mib: u64) -> DiskSpec {
        DiskSpec {
            format: DiskFormat::Qcow2,
            content: Content::Empty { size_mib },
        }
    }

    /// A new, empty raw disk.
    pub fn raw(size_mib: u64) -> DiskSpec {
        DiskSpec {
            format: DiskFormat::Raw,
            content: Content::Empty { size_mib },
        }
    }

    /// An image that exists; it is used in place and left there at the end.
    pub fn existing(image: impl Into<PathBuf>, format: DiskFormat) -> DiskSpec {
        DiskSpec {
            format,
            content: Content::Existing(image.into()),
        }
    }

    /// A new qcow2 disk that begins as the image is; the image itself stays as it is.
    pub fn over(backing: impl Into<PathBuf>, backing_format: DiskFormat) -> DiskSpec {
        DiskSpec {
            format: DiskFormat::Qcow2,
            content: Content::Over {
                backing: backing.into(),
                backing_format,
            },
        }
    }

    /// How the image is stored.
    pub(crate) fn format(&self) -> DiskFormat {
        self.format
    }

    /// The image's path; a disk without one is made in `folder`.
    pub(crate) fn make(&self, folder: &Path, index: usize) -> Result<PathBuf> {
        let path = folder.join(format!("disk{index}.{}", self.format.name()));
        match &self.content {
            Content::Existing(image) => return Ok(image.clone()),
            Content::Empty { size_mib } => make_disk(&path, self.format, *size_mib)?,
            Content::Over {
                backing,
                backing_format,
            } => make_overlay(&path, backing, *backing_format)?,
        }
        Ok(path)
    }
}

/// Makes an empty disk image.
pub fn make_disk(path: &Path, format: DiskFormat, size_mib: u64) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", format.name()])
        .arg(path)
        .arg(format!("{size_mib}M"));
    try_run(&mut command).map(drop)
}

fn make_overlay(path: &Path, backing: &Path, backing_format: DiskFormat) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            backing_format.name(),
            "-b",
        ])
        .arg(backing)
        .arg(path);
    try_run(&mut command).map(drop)
}

/// Copies a disk (a path, or a URI such as `nbd+unix:///disk?socket=…`) into a raw file.
///
/// A disk that a running guest holds can be copied too; the copy is then of no
/// one instant.
pub(crate) fn copy_to_raw(disk: &OsStr, format: DiskFormat, raw: &Path) {
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-q", "-U", "-f", format.name(), "-O", "raw"])
        .arg(disk)
        .arg(raw);
    run(&mut command);
}
