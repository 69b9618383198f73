-- The present schema of the ledger. Migrations lead here from every older version; a test compares the results.

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
    outcome TEXT NOT NULL,
    effect  TEXT
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
    session    TEXT,
    fault      TEXT,             -- what kept the CLI from working, where it failed of that
    limited    REAL,             -- how long it has waited for the ends of limits, in seconds
    reply_to   INTEGER           -- the dispatch whose conversation it goes on with
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
    event    INTEGER NOT NULL,
    wake     INTEGER,          -- the dispatch that goes on with the answer
    waiter   INTEGER,          -- the run that waits for it,
    waits    REAL              -- and until when
);
CREATE INDEX senders_dispatch ON senders (dispatch);
CREATE INDEX senders_waiter ON senders (waiter) WHERE waiter IS NOT NULL;

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
    stop     TEXT,              -- why it was told to stop
    driver   TEXT,              -- what it was started with
    sealed   INTEGER            -- whether what it wrote is in `work`
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
    until  REAL,               -- NULL: until somebody resumes it
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE TABLE files (
    dir   BLOB NOT NULL,
    name  BLOB NOT NULL,
    ino   INTEGER,              -- NULL: seen, and not yet complete
    size  INTEGER,
    mtime INTEGER,
    changed INTEGER,            -- ctime; NULL: not known
    PRIMARY KEY (dir, name)
) WITHOUT ROWID;

CREATE TABLE notices (
    id    INTEGER PRIMARY KEY,
    time  REAL NOT NULL,
    event INTEGER,
    text  TEXT NOT NULL,
    about TEXT,
    closed REAL
);

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

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
    opening  INTEGER,          -- the action that opens its PR
    pr       INTEGER,          -- the PR
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
CREATE TABLE git_refs (
    ref   TEXT PRIMARY KEY,
    known TEXT NOT NULL,       -- the last entry of its log, or a tag's object
    time  REAL NOT NULL
) WITHOUT ROWID;

-- Commits that are recorded already.
CREATE TABLE git_commits (
    sha TEXT PRIMARY KEY
) WITHOUT ROWID;

-- The files that ended runs have written, each path with its last run.
CREATE TABLE work (
    path     BLOB PRIMARY KEY,
    run      INTEGER NOT NULL,
    agent    TEXT NOT NULL,
    dispatch INTEGER NOT NULL,
    seal     TEXT              -- what it was when the run ended; NULL: nobody can say, it was changed meanwhile
) WITHOUT ROWID;
CREATE INDEX work_agent ON work (agent);

-- All entries of the shared memory, with ids from one sequence.
CREATE TABLE memory (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    source   TEXT NOT NULL CHECK (source IN ('todo', 'learning', 'observation', 'session', 'answer', 'message', 'plan', 'pr')),
    agent    TEXT NOT NULL,    -- whose it is
    text     TEXT NOT NULL,
    tags     TEXT NOT NULL,    -- a JSON list
    path,                      -- a file that it is about
    dispatch INTEGER,
    run      INTEGER,
    time     REAL NOT NULL,
    detail   TEXT NOT NULL     -- of a session: when it began, how it ended, its files
);
CREATE INDEX memory_agent ON memory (agent, source, id);

-- Entries of state files. `since`, `changed`, `gone`: the first copy of the file (its `updated`, in milliseconds) with the entry,
-- with this text, without the entry.
CREATE TABLE notes (
    id      INTEGER PRIMARY KEY REFERENCES memory (id),
    agent   TEXT NOT NULL,
    source  TEXT NOT NULL,
    place   INTEGER NOT NULL,  -- in its list
    since   INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    gone    INTEGER,
    earlier TEXT NOT NULL      -- what it said before, a JSON list
);
CREATE INDEX notes_agent ON notes (agent, source, gone);

-- The wanted content of each file.
CREATE TABLE states (
    agent   TEXT NOT NULL,
    file    TEXT NOT NULL,
    updated INTEGER NOT NULL,
    doing   TEXT,
    body    BLOB NOT NULL,
    PRIMARY KEY (agent, file)
) WITHOUT ROWID;

-- Former contents: an agent may still save a copy that it began from one of these.
CREATE TABLE copies (
    agent   TEXT NOT NULL,
    file    TEXT NOT NULL,
    updated INTEGER NOT NULL,
    engine  TEXT NOT NULL,     -- the engine's fields by their hashes, as JSON
    doing   TEXT,
    PRIMARY KEY (agent, file, updated)
) WITHOUT ROWID;

CREATE TABLE messages (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    sender    TEXT NOT NULL,   -- an agent, `human`, or `aipass` itself
    recipient TEXT NOT NULL,   -- an agent, or `human`
    subject   TEXT,
    text      TEXT NOT NULL,
    files     TEXT NOT NULL,   -- paths that come with it, a JSON list
    reply_to  INTEGER,
    dispatch  INTEGER,         -- what its sender was working on
    run       INTEGER,
    sent      REAL NOT NULL,
    delivered REAL,
    read      REAL,
    shown     INTEGER,         -- the run whose prompt holds it
    asks      INTEGER NOT NULL,  -- whether it is a question, and then:
    options   TEXT NOT NULL,   -- what may be answered, a JSON list
    work      INTEGER,         -- the dispatch that shall answer it
    answer    TEXT,
    answered  REAL,
    answerer  TEXT,
    closed    TEXT,            -- why no answer is wanted any more
    waits     REAL             -- until when its run waits for the answer
);
CREATE INDEX messages_recipient ON messages (recipient, id);
CREATE INDEX messages_unread ON messages (recipient, id) WHERE read IS NULL;
CREATE INDEX messages_replies ON messages (reply_to) WHERE read IS NULL;
CREATE INDEX messages_shown ON messages (shown) WHERE shown IS NOT NULL;
CREATE INDEX messages_open ON messages (dispatch) WHERE asks AND answered IS NULL AND closed IS NULL;

-- Entries that must stay forgotten: a copy of a file may still contain them. Nothing else of them is kept.
CREATE TABLE forgotten (id INTEGER PRIMARY KEY);

CREATE VIRTUAL TABLE memory_words USING fts5 (words, tokenize = 'porter unicode61 remove_diacritics 2', prefix = '3');
