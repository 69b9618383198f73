-- Version 2: started plans.

CREATE TABLE plans (
    id       TEXT PRIMARY KEY,
    title    TEXT NOT NULL,
    file     TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('running', 'paused', 'done', 'failed', 'stopped')),
    body     TEXT NOT NULL,    -- as it was taken over, as JSON
    started  REAL NOT NULL,
    finished REAL,
    reason   TEXT,
    hops     INTEGER NOT NULL  -- how long the chain of agents is that started it
) WITHOUT ROWID;

CREATE TABLE phases (
    plan     TEXT NOT NULL REFERENCES plans (id),
    id       TEXT NOT NULL,
    place    INTEGER NOT NULL,
    agent    TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('waiting', 'ready', 'running', 'delivered', 'done', 'failed', 'stopped')),
    dispatch INTEGER,
    checking INTEGER,          -- the check that runs
    seal     TEXT,             -- what it checks, as it was then
    began    REAL,
    finished REAL,
    handoff  TEXT,             -- what its agent said; NULL: as the plan or the driver has it
    reason   TEXT,
    PRIMARY KEY (plan, id)
) WITHOUT ROWID;
CREATE INDEX phases_dispatch ON phases (dispatch) WHERE dispatch IS NOT NULL;

-- The deliverables of a phase that its runs have written.
CREATE TABLE written (
    plan  TEXT NOT NULL,
    phase TEXT NOT NULL,
    path  TEXT NOT NULL,
    PRIMARY KEY (plan, phase, path)
) WITHOUT ROWID;
