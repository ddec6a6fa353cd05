-- Whom to tell of what goes wrong, and how (JSON that the program understands). One with a host is
-- told by that host alone, since it needs a file or a program that is there.
CREATE TABLE notify_target (
    id         TEXT NOT NULL PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    spec       TEXT NOT NULL,
    host       TEXT,
    created_at TEXT NOT NULL
);

-- What fails at present: a guest by its id, or another subject of a schedule.
CREATE TABLE notify_failing (
    subject       TEXT NOT NULL PRIMARY KEY,
    failing_since TEXT NOT NULL,
    told_at       TEXT
);

-- Messages on their way, and what became of them. Who claims a row delivers it.
CREATE TABLE notify_message (
    id         TEXT   NOT NULL PRIMARY KEY,
    target_id  TEXT   NOT NULL REFERENCES notify_target (id) ON DELETE CASCADE,
    document   TEXT   NOT NULL,
    created_at TEXT   NOT NULL,
    due_at     TEXT   NOT NULL,
    attempts   BIGINT NOT NULL,
    owner      TEXT,
    claimed_at TEXT,
    ended_at   TEXT,
    outcome    TEXT,
    note       TEXT
);
CREATE INDEX notify_message_by_due ON notify_message (ended_at, due_at);
CREATE INDEX notify_message_by_target ON notify_message (target_id, created_at);

-- When it was seen to that somebody is told of a run. What ended before this is not told.
ALTER TABLE schedule_run ADD COLUMN told_at TEXT;
UPDATE schedule_run SET told_at = ended_at WHERE ended_at IS NOT NULL;
CREATE INDEX schedule_run_untold ON schedule_run (told_at);

-- Figures of a long history are read from these alone.
CREATE INDEX snapshot_by_size ON snapshot (repository_id, bytes_stored);
CREATE INDEX job_by_kind ON job (kind, state);
CREATE INDEX job_by_vm_and_start ON job (vm_id, kind, started_at);
CREATE INDEX schedule_run_by_outcome ON schedule_run (schedule_id, outcome);
