-- The nodes of a cluster, and the last configuration that each one gave (XML).
CREATE TABLE node (
    id               TEXT NOT NULL PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    host             TEXT NOT NULL,
    version          TEXT NOT NULL,
    joined_at        TEXT NOT NULL,
    seen_at          TEXT NOT NULL,
    configuration    TEXT,
    configuration_at TEXT
);
