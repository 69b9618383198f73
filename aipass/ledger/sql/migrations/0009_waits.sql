
-- Version 9: until when a run waits for the answer to its question.

ALTER TABLE messages ADD COLUMN waits REAL;
