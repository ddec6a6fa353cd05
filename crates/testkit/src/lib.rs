//! Tiny guests, faulty stores and other tools for tests.
//!
//! A test starts a [`Guest`]: a real QEMU process that boots Debian's cloud
//! kernel and runs `guest/ticker.c`, a program that numbers its writes. Two QMP
//! sockets lead to it: one for the code under test, one for the test to watch
//! with. After a restore, [`DiskLedger`] and the guest's own `report` say whether
//! memory and all disks are of one instant, and [`assert_clean`] says whether
//! anything was left behind in the guest. A [`debian::guest`] is the real thing:
//! systemd, data bases at work, and judges of the disks that are made of it.
//!
//! Everything here is for tests, so most functions panic with the reason instead
//! of returning an error. What must not panic has a `try_` name.
//!
//! A [`LibvirtHost`] is a host with its own libvirt, and a [`LibvirtGuest`] such a tiny guest as a
//! domain of it.
//!
//! With the feature `s3` there is a real S3 service too ([`s3`]).
//!
//! Environment:
//! - `VMTWIN_CACHE`: where kernel, initramfs and the Debian guest are kept (default `~/.cache/vmtwin`).
//! - `VMTWIN_TEST_ACCEL`: `kvm` or `tcg`; without it KVM is used where it boots.
//! - `VMTWIN_TEST_KEEP`: keep temporary folders, to look at after a failure.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's tool tells what is wrong by panicking in the test"
)]

mod accel;
mod cache;
mod clean;
mod command;
mod console;
mod cpio;
mod daemon;
pub mod debian;
mod disk;
mod ext4;
mod faults;
pub mod foreign;
mod guest;
mod image;
mod ledger;
mod libvirt;
mod libvirt_guest;
mod postgres;
mod process;
mod qmp;
#[cfg(feature = "s3")]
pub mod s3;
mod sink;
mod tpm;

pub use accel::Accel;
pub use cache::cached;
pub use clean::{assert_clean, assert_no_spools, leftovers};
pub use command::{GuestBuilder, Mode};
pub use console::{Heartbeat, Log, Report, Tick};
pub use daemon::DaemonSpec;
pub use disk::{DiskFormat, DiskSpec, make_disk};
pub use ext4::Ext4State;
pub use faults::{ReadOnlyDir, SmallTmpfs};
pub use guest::Guest;
pub use image::GuestImage;
pub use ledger::{DiskLedger, assert_one_instant};
pub use libvirt::LibvirtHost;
pub use libvirt_guest::LibvirtGuest;
pub use postgres::Postgres;
pub use process::{Workdir, free_port, promtool, run, try_run};
pub use qmp::{Qmp, QmpEvent};
pub use sink::Sink;

/// Whether the long tests are wanted too (`./test --all`).
pub fn all_tests_wanted() -> bool {
    std::env::var_os("VMTWIN_TEST_ALL").is_some_and(|value| value != "0")
}
