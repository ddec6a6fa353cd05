-- Commands that `vmtwin serve` runs for somebody, each in a process of its own.
CREATE TABLE task (
    id         TEXT   NOT NULL PRIMARY KEY,
    command    TEXT   NOT NULL,
    arguments  TEXT   NOT NULL,
    asked_by   TEXT   NOT NULL,
    asked_key  TEXT,
    vm_name    TEXT,
    state      TEXT   NOT NULL,
    owner      TEXT   NOT NULL,
    created_at TEXT   NOT NULL,
    started_at TEXT,
    ended_at   TEXT,
    exit_code  BIGINT,
    error      TEXT,
    result     TEXT,
    text       TEXT,
    log        TEXT,
    UNIQUE (asked_by, asked_key)
);
CREATE INDEX task_by_creation ON task (created_at);
CREATE INDEX task_by_state ON task (state);

-- Who may ask, and for what. Of secrets there is a hash.
CREATE TABLE api_token (
    name       TEXT NOT NULL PRIMARY KEY,
    hash       TEXT NOT NULL UNIQUE,
    scope      TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    used_at    TEXT
);
CREATE TABLE api_session (
    hash       TEXT NOT NULL PRIMARY KEY,
    token      TEXT NOT NULL REFERENCES api_token (name) ON DELETE CASCADE,
    csrf       TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL
);

-- What was asked for that changes something, and what was refused.
CREATE TABLE audit (
    id      TEXT NOT NULL PRIMARY KEY,
    at      TEXT NOT NULL,
    who     TEXT NOT NULL,
    origin  TEXT NOT NULL,
    action  TEXT NOT NULL,
    detail  TEXT NOT NULL,
    outcome TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at);

-- Pages and sums over long histories, without reading reports.
CREATE INDEX snapshot_growth ON snapshot (time, id, bytes_read, bytes_new, bytes_stored);
CREATE INDEX snapshot_trend ON snapshot (vm_name, time, bytes_new, bytes_stored);
CREATE INDEX job_latest ON job (vm_id, kind, started_at);
