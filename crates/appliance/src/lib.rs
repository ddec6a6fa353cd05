//! Reads files out of disks with foreign file systems, in a small virtual machine of its own.
//!
//! A file system that somebody else wrote is hostile input to a kernel: a host never mounts one. Here
//! a QEMU is started with a kernel that the host has installed, an initramfs made on the spot, the
//! disks, no network, and one serial port. The program in it is the one that calls [`guest::run`],
//! usually the caller's own, as process 1: it finds the file systems, mounts them read-only, and
//! answers requests on the port ([`wire`]).
//!
//! ```text
//!   Appliance::start ──► initramfs (program, libraries, modules, lvm, ntfs-3g)
//!        │                    │
//!        │               QEMU: kernel ── disks (any URI, writes thrown away)
//!        └── requests ───────►│ serial port
//!        ◄── frames ──────────┘ checked: the machine may have been taken over by what it reads
//! ```
//! What comes out of the machine is hostile as well: see [`host::Extraction`].

pub mod guest;
pub mod host;
pub mod wire;

pub use host::{
    Appliance, ApplianceError, DiskSource, Extracted, Extraction, FileToWriter, MAX_DISKS,
    Settings, default_kernel,
};
pub use wire::{Entry, EntryKind, FileSystem, Name};
