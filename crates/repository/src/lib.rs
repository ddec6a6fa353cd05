//! Repository in restic format version 2: ingest, random read, locks.
