
-- Version 6: the memory of agents, and the content of their state files.

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
