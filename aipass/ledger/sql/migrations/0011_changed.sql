-- When a file's inode was changed last, as it was told: an edit that keeps size and time is one all the same.
ALTER TABLE files ADD COLUMN changed INTEGER;
