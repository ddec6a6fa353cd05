//! Start a machine again.
