
-- Version 9: runs that wait, for an answer or for work that they gave to another, and until when; what is forgotten for good.

ALTER TABLE messages ADD COLUMN waits REAL;
ALTER TABLE senders ADD COLUMN waiter INTEGER;
ALTER TABLE senders ADD COLUMN waits REAL;

CREATE INDEX senders_waiter ON senders (waiter) WHERE waiter IS NOT NULL;

CREATE TABLE forgotten (id INTEGER PRIMARY KEY);
