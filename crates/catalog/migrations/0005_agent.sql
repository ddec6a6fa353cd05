-- Where a node's agent answers: HOST:PORT.
ALTER TABLE node ADD COLUMN address TEXT;

-- Certificates that the cluster's authority gave to nodes. One that is not here, or is revoked, does
-- not count. `node` refers to nothing: revoked ones stay when their node is gone.
CREATE TABLE node_certificate (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    node        TEXT NOT NULL,
    issued_at   TEXT NOT NULL,
    expires_at  TEXT NOT NULL,
    revoked_at  TEXT
);

-- Tokens by which one host may join, by the SHA-256 of their secret.
CREATE TABLE join_token (
    hash       TEXT NOT NULL PRIMARY KEY,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    used_at    TEXT,
    used_by    TEXT
);
