//! A real S3 service for tests, and a proxy in front of it that spoils what is said.
//!
//! The service runs in the test's process on a loopback port, over a temporary folder. It checks
//! signatures, `Content-MD5` and `If-None-Match`, and lists at most 1000 objects at a time.

mod files;
mod garage;
mod proxy;
mod server;

pub use garage::Garage;
pub use proxy::{Fault, FaultProxy, Request};
pub use server::S3Server;
