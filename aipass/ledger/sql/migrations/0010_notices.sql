-- Version 10: the subject of a notice, so that the notice can be withdrawn when its subject is over.
ALTER TABLE notices ADD COLUMN about TEXT;

ALTER TABLE notices ADD COLUMN closed REAL;
