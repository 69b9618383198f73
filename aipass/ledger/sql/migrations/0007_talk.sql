
-- Version 7: messages.

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
    closed    TEXT             -- why no answer is wanted any more
);
CREATE INDEX messages_recipient ON messages (recipient, id);
CREATE INDEX messages_unread ON messages (recipient, id) WHERE read IS NULL;
CREATE INDEX messages_replies ON messages (reply_to) WHERE read IS NULL;
CREATE INDEX messages_shown ON messages (shown) WHERE shown IS NOT NULL;
CREATE INDEX messages_open ON messages (dispatch) WHERE asks AND answered IS NULL AND closed IS NULL;

ALTER TABLE senders ADD COLUMN wake INTEGER;  -- the dispatch that goes on with the answer
