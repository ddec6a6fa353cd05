-- Snapshots that were forgotten and stay until their delay is over.
CREATE TABLE deletion (
    repository_id TEXT NOT NULL,
    snapshot_id   TEXT NOT NULL,
    asked_at      TEXT NOT NULL,
    due_at        TEXT NOT NULL,
    PRIMARY KEY (repository_id, snapshot_id)
);
