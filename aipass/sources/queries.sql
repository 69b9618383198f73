-- Files of the watched tree, as last reported. A line with `name:` begins a statement; the next line says its purpose.

-- name: file
-- The known version of one file.
SELECT ino, size, mtime, changed FROM files WHERE dir = ? AND name = ?

-- name: put_file
-- Store the known version of a file.
INSERT INTO files (dir, name, ino, size, mtime, changed) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (dir, name) DO UPDATE SET ino = excluded.ino, size = excluded.size, mtime = excluded.mtime, changed = excluded.changed

-- name: drop_file
-- Forget a file.
DELETE FROM files WHERE dir = ? AND name = ?

-- name: files_in
-- The known files directly in one folder.
SELECT name, ino, size, mtime, changed FROM files WHERE dir = ?

-- name: files_below
-- The known files in a folder and below it. `high` is the folder's name with `0`, the character after `/`, so that an index serves.
SELECT dir, name, ino, size, mtime, changed FROM files WHERE dir = :dir OR (dir >= :low AND dir < :high)

-- name: all_files
-- The known files of the whole tree.
SELECT dir, name, ino, size, mtime, changed FROM files

-- name: known_dirs
-- Folders that contain a known file.
SELECT DISTINCT dir FROM files

-- name: nested_roots
-- Folders below the root that are roots of their own.
SELECT dir FROM files WHERE name = CAST('aipass.toml' AS BLOB) AND dir <> x''
