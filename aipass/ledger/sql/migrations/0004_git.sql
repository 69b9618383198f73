-- Version 4: the last recorded entry of each of git's logs.

CREATE TABLE git_refs (
    ref   TEXT PRIMARY KEY,
    known TEXT NOT NULL,       -- the last entry of its log, or a tag's object
    time  REAL NOT NULL
) WITHOUT ROWID;

-- Commits that are recorded already.
CREATE TABLE git_commits (
    sha TEXT PRIMARY KEY
) WITHOUT ROWID;
