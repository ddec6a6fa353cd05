//! The crate's contract, with stock restic as the judge. One program, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may fail by panicking"
)]

mod cache;
mod common;
mod damage;
mod faults;
mod images;
mod locks;
mod restic;
mod s3;
mod s3_faults;
mod upkeep;
