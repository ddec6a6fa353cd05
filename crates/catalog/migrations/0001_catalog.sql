-- The first schema of the catalog. Once released, a migration is never edited: add another.
--
-- Portable between SQLite and PostgreSQL: ids, states, JSON and times are TEXT (times are
-- RFC 3339, UTC, microseconds, so that text order is time order), numbers are BIGINT, flags are
-- BOOLEAN. Which texts a state may hold is checked by the program, in one place, not here.

-- The VM management table: guests and twins.
CREATE TABLE vm (
    id                 TEXT    NOT NULL PRIMARY KEY,
    name               TEXT    NOT NULL UNIQUE,
    connection_kind    TEXT    NOT NULL,
    connection_address TEXT    NOT NULL,
    role               TEXT    NOT NULL,
    twin_of            TEXT    REFERENCES vm (id) ON DELETE SET NULL,
    state              TEXT    NOT NULL,
    resume_flag        BOOLEAN NOT NULL,
    memory_bytes       BIGINT,
    machine            TEXT,
    added_at           TEXT    NOT NULL,
    seen_at            TEXT
);

-- The virtual disks of a VM, and what is behind each.
CREATE TABLE disk (
    vm_id       TEXT    NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
    disk_id     TEXT    NOT NULL,
    position    BIGINT  NOT NULL,
    node        TEXT,
    qdev        TEXT,
    address     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    size_bytes  BIGINT  NOT NULL,
    format      TEXT    NOT NULL,
    read_only   BOOLEAN NOT NULL,
    included    BOOLEAN NOT NULL,
    switched_to TEXT,
    switched_at TEXT,
    PRIMARY KEY (vm_id, disk_id)
);

-- Every piece of long work, and the process that does it. The name of the VM is kept as well, so
-- that history outlives the VM's row.
CREATE TABLE job (
    id          TEXT   NOT NULL PRIMARY KEY,
    kind        TEXT   NOT NULL,
    vm_id       TEXT   REFERENCES vm (id) ON DELETE SET NULL,
    vm_name     TEXT,
    state       TEXT   NOT NULL,
    owner_pid   BIGINT NOT NULL,
    owner_start BIGINT NOT NULL,
    owner_boot  TEXT   NOT NULL,
    host        TEXT   NOT NULL,
    started_at  TEXT   NOT NULL,
    ended_at    TEXT,
    error       TEXT,
    report      TEXT
);
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_vm ON job (vm_id);
CREATE INDEX job_by_start ON job (started_at);

-- The journal: how to undo each step of a job, written before the step is done.
CREATE TABLE step (
    id     BIGINT NOT NULL PRIMARY KEY,
    job_id TEXT   NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    seq    BIGINT NOT NULL,
    name   TEXT   NOT NULL,
    state  TEXT   NOT NULL,
    undo   TEXT   NOT NULL,
    at     TEXT   NOT NULL,
    UNIQUE (job_id, seq)
);

-- What the repositories hold: a cache that can be rebuilt, hence no reference to vm.
CREATE TABLE snapshot (
    repository_id     TEXT   NOT NULL,
    id                TEXT   NOT NULL,
    vm_id             TEXT,
    vm_name           TEXT   NOT NULL,
    time              TEXT   NOT NULL,
    consistency       TEXT   NOT NULL,
    consistency_asked TEXT   NOT NULL,
    bytes_read        BIGINT NOT NULL,
    bytes_new         BIGINT NOT NULL,
    bytes_stored      BIGINT NOT NULL,
    parent            TEXT,
    state             TEXT   NOT NULL,
    report            TEXT   NOT NULL,
    PRIMARY KEY (repository_id, id)
);
CREATE INDEX snapshot_by_vm ON snapshot (vm_name, time);

CREATE TABLE setting (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
