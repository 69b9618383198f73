-- Version 3: limits, faults and conversations of agents' CLIs.

ALTER TABLE dispatches ADD COLUMN fault TEXT;
ALTER TABLE dispatches ADD COLUMN limited REAL;
ALTER TABLE dispatches ADD COLUMN reply_to INTEGER;
ALTER TABLE runs ADD COLUMN driver TEXT;
ALTER TABLE pauses ADD COLUMN until REAL;
