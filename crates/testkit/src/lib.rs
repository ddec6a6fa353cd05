//! Tiny guests, faulty stores and other tools for tests.
