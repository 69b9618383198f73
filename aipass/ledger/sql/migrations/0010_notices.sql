-- What a notice is about, so that it can be withdrawn when that is over.
ALTER TABLE notices ADD COLUMN about TEXT;

ALTER TABLE notices ADD COLUMN closed REAL;
