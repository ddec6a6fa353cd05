-- What is to happen by itself, and when (JSON that the program understands).
CREATE TABLE schedule (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    spec       TEXT    NOT NULL,
    enabled    BOOLEAN NOT NULL,
    created_at TEXT    NOT NULL
);

-- What a due time of a schedule brought for a subject (a guest, or the work after all of them). The
-- key is the claim: whoever inserts the row does the work, and nobody does it twice.
CREATE TABLE schedule_run (
    schedule_id TEXT NOT NULL REFERENCES schedule (id) ON DELETE CASCADE,
    due_at      TEXT NOT NULL,
    subject     TEXT NOT NULL,
    owner       TEXT NOT NULL,
    started_at  TEXT NOT NULL,
    ended_at    TEXT,
    outcome     TEXT,
    note        TEXT,
    PRIMARY KEY (schedule_id, due_at, subject)
);
CREATE INDEX schedule_run_by_end ON schedule_run (ended_at);
