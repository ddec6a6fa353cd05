//! The tests of jobs, nodes, notifications and of the VM table again, on a PostgreSQL server, and what
//! only a server has: strangers' tables, later schemas, a server that is gone for a while.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![allow(
    clippy::duplicate_mod,
    reason = "the same helpers serve the tests of both databases"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../job.rs"]
mod job;
#[path = "../node.rs"]
mod node;
#[path = "../notify.rs"]
mod notify;
mod server;
#[path = "../vm.rs"]
mod vm;
