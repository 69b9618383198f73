-- Version 11: the ctime of a file as last reported: it shows an edit that keeps size and time.
ALTER TABLE files ADD COLUMN changed INTEGER;
