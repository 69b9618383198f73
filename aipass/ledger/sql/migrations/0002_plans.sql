-- Version 2: plans that have begun.

CREATE TABLE plans (
    id       TEXT PRIMARY KEY,
    title    TEXT NOT NULL,
    file     TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('running', 'paused', 'done', 'failed', 'stopped')),
    body     TEXT NOT NULL,    -- as it was taken over, as JSON
    started  REAL NOT NULL,
    finished REAL,
    reason   TEXT
) WITHOUT ROWID;

CREATE TABLE phases (
    plan     TEXT NOT NULL REFERENCES plans (id),
    id       TEXT NOT NULL,
    place    INTEGER NOT NULL,
    agent    TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('waiting', 'ready', 'running', 'delivered', 'done', 'failed', 'stopped')),
    dispatch INTEGER,
    checking INTEGER,          -- the check that runs
    began    REAL,
    finished REAL,
    written  TEXT NOT NULL DEFAULT '[]',
    reason   TEXT,
    PRIMARY KEY (plan, id)
) WITHOUT ROWID;
CREATE INDEX phases_dispatch ON phases (dispatch) WHERE dispatch IS NOT NULL;
