//! The crate's contract, with stock restic as the judge. One program, so that it links once.

mod common;
mod damage;
mod faults;
mod images;
mod locks;
mod restic;
