//! Catalog: VM management table, jobs and their journal, snapshots.
