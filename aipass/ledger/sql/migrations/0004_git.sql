-- Version 4: how far what git did is known.

CREATE TABLE git_refs (
    ref   TEXT PRIMARY KEY,
    known TEXT NOT NULL,       -- the last entry of its log, or a tag's object
    time  REAL NOT NULL
) WITHOUT ROWID;

-- Commits that were told.
CREATE TABLE git_commits (
    sha TEXT PRIMARY KEY
) WITHOUT ROWID;
