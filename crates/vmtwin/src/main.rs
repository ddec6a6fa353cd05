//! The vmtwin binary.
fn main() {}
