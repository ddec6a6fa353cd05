//! libvirt, loaded at run time: a host without it runs the same binary.
//!
//! A [`Connection`] lists, reads, defines and removes objects of every [`Kind`] (networks, storage
//! pools, secrets, filters, devices, interfaces) as [`Object`]s, volumes as [`Volume`]s and guests
//! as [`Domain`]s. A domain also gives the QMP monitor of its QEMU, with file descriptors, and
//! events of both kinds.
//!
//! Handles are counted by libvirt and given back when a value goes. Every handle keeps its
//! connection open. Calls block; libvirt allows them from any thread.
//!
//! What it needs: `libvirt.so.0` and `libvirt-qemu.so.0` of libvirt 8.2 or newer. All unsafe code
//! is in the module `ffi`. Knows nothing of backups.

mod connection;
mod domain;
mod error;
mod event;
mod ffi;
mod object;
mod volume;

pub use connection::Connection;
pub use domain::{Domain, DomainState, MonitorAnswer, RestoreAs, UndefineFlags};
pub use error::{Error, ErrorCode};
pub use event::{Lifecycle, MonitorEvent, Subscription};
pub use object::{Kind, Object};
pub use volume::Volume;
