-- Files of the watched tree, as they were told last. A line with `name:` begins a statement; the next line says its purpose.

-- name: file
-- What is known of one file.
SELECT ino, size, mtime, changed FROM files WHERE dir = ? AND name = ?

-- name: put_file
-- What is known now.
INSERT INTO files (dir, name, ino, size, mtime, changed) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (dir, name) DO UPDATE SET ino = excluded.ino, size = excluded.size, mtime = excluded.mtime, changed = excluded.changed

-- name: drop_file
-- It is gone.
DELETE FROM files WHERE dir = ? AND name = ?

-- name: files_in
-- What is known of one folder.
SELECT name, ino, size, mtime, changed FROM files WHERE dir = ?

-- name: files_below
-- What is known of a folder and all below it. The end is the folder's name with `0`, which follows `/`.
SELECT dir, name, ino, size, mtime, changed FROM files WHERE dir = :dir OR (dir >= :low AND dir < :high)

-- name: all_files
-- What is known of the whole tree.
SELECT dir, name, ino, size, mtime, changed FROM files

-- name: known_dirs
-- Folders that hold a known file.
SELECT DISTINCT dir FROM files

-- name: nested_roots
-- Folders below the root that are roots of their own.
SELECT dir FROM files WHERE name = CAST('aipass.toml' AS BLOB) AND dir <> x''
