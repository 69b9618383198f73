
-- Version 9: runs that wait for an answer or for the work of another agent, with a deadline; entries that must stay forgotten.

ALTER TABLE messages ADD COLUMN waits REAL;
ALTER TABLE senders ADD COLUMN waiter INTEGER;
ALTER TABLE senders ADD COLUMN waits REAL;

CREATE INDEX senders_waiter ON senders (waiter) WHERE waiter IS NOT NULL;

CREATE TABLE forgotten (id INTEGER PRIMARY KEY);
