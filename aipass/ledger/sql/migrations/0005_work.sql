-- Version 5: the contributions of agents, for their PRs.

CREATE TABLE work (
    path     BLOB PRIMARY KEY,
    run      INTEGER NOT NULL,
    agent    TEXT NOT NULL,
    dispatch INTEGER NOT NULL,
    seal     TEXT              -- what it was when the run ended; NULL: nobody can say, it was changed meanwhile
) WITHOUT ROWID;
CREATE INDEX work_agent ON work (agent);

ALTER TABLE runs ADD COLUMN sealed INTEGER;    -- whether what it wrote is in `work`
UPDATE runs SET sealed = 1 WHERE state = 'ended';

ALTER TABLE phases ADD COLUMN opening INTEGER; -- the action that opens its PR
ALTER TABLE phases ADD COLUMN pr INTEGER;      -- the PR
