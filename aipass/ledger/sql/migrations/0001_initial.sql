-- Version 1: the first ledger.

CREATE TABLE events (
    id     INTEGER PRIMARY KEY,
    time   REAL NOT NULL,
    kind   TEXT NOT NULL,
    source TEXT NOT NULL,
    path,                      -- TEXT, or BLOB where the name is not UTF-8
    ref    TEXT,
    run    INTEGER,            -- who did it, where a run did
    cause  INTEGER,
    detail TEXT NOT NULL
);
CREATE INDEX events_kind ON events (kind, id);
CREATE INDEX events_path ON events (path, id) WHERE path IS NOT NULL;

CREATE TABLE actions (
    id      INTEGER PRIMARY KEY,
    event   INTEGER NOT NULL,
    handler TEXT NOT NULL,
    type    TEXT NOT NULL,
    payload TEXT NOT NULL,
    state   TEXT NOT NULL CHECK (state IN ('pending', 'done', 'failed')),
    outcome TEXT NOT NULL
);
CREATE INDEX actions_event ON actions (event);
CREATE INDEX actions_pending ON actions (id) WHERE state = 'pending';

CREATE TABLE dispatches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      TEXT NOT NULL,
    key        TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'blocked')),
    subject    TEXT,
    priority   INTEGER NOT NULL,
    hops       INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    tries      INTEGER NOT NULL DEFAULT 0,  -- attempts since it was last asked for
    created    REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    started    REAL,
    finished   REAL,
    reason     TEXT,
    cause      INTEGER,
    handler    TEXT NOT NULL,
    plan       TEXT,
    phase      TEXT,
    answer     TEXT,
    exit       INTEGER,
    usage      TEXT,
    session    TEXT
);
-- One open dispatch for an agent and a key that has not begun; what has begun may have one follow-up.
CREATE UNIQUE INDEX dispatches_one_queued ON dispatches (agent, key) WHERE state = 'queued' AND attempts = 0;
-- At most one running dispatch per agent.
CREATE UNIQUE INDEX dispatches_one_running ON dispatches (agent) WHERE state = 'running';
CREATE INDEX dispatches_open ON dispatches (id) WHERE state IN ('queued', 'running', 'blocked');
CREATE INDEX dispatches_state ON dispatches (state, id);
CREATE INDEX dispatches_agent_key ON dispatches (agent, key, id);

CREATE TABLE senders (
    id       INTEGER PRIMARY KEY,
    dispatch INTEGER NOT NULL REFERENCES dispatches (id),
    sender   TEXT NOT NULL,
    stem     TEXT NOT NULL,
    text     TEXT NOT NULL,
    file     TEXT,             -- what was handed in, as JSON: path, type, size
    event    INTEGER NOT NULL
);
CREATE INDEX senders_dispatch ON senders (dispatch);

CREATE TABLE runs (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    dispatch INTEGER NOT NULL REFERENCES dispatches (id),
    agent    TEXT NOT NULL,
    state    TEXT NOT NULL CHECK (state IN ('starting', 'running', 'ended')),
    pid      INTEGER,
    created  REAL NOT NULL,
    started  REAL,
    finished REAL,
    exit     INTEGER,
    signal   INTEGER,
    outcome  TEXT,
    stop     TEXT               -- why it was told to stop
);
CREATE UNIQUE INDEX runs_one_live ON runs (agent) WHERE state <> 'ended';
CREATE INDEX runs_live ON runs (id) WHERE state <> 'ended';
CREATE INDEX runs_dispatch ON runs (dispatch);
CREATE INDEX runs_created ON runs (created);

CREATE TABLE requests (
    id       TEXT PRIMARY KEY,
    event    INTEGER NOT NULL,
    exit     INTEGER,           -- NULL until it was answered
    message  TEXT,
    dispatch INTEGER
) WITHOUT ROWID;

CREATE TABLE timers (
    key    TEXT PRIMARY KEY,
    asked  REAL NOT NULL,
    after  REAL NOT NULL,
    event  INTEGER,
    count  INTEGER NOT NULL,
    detail TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE pauses (
    kind   TEXT NOT NULL CHECK (kind IN ('agent', 'rule', 'driver', 'handler')),
    name   TEXT NOT NULL,
    reason TEXT NOT NULL,
    since  REAL NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE TABLE files (
    dir   BLOB NOT NULL,
    name  BLOB NOT NULL,
    ino   INTEGER,              -- NULL: seen, and not yet complete
    size  INTEGER,
    mtime INTEGER,
    PRIMARY KEY (dir, name)
) WITHOUT ROWID;

CREATE TABLE notices (
    id    INTEGER PRIMARY KEY,
    time  REAL NOT NULL,
    event INTEGER,
    text  TEXT NOT NULL
);

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
