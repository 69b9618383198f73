-- Refs and commits that were told. A line with `name:` begins a statement; the next line says its purpose.

-- name: git_ref
-- How far a ref's log is known.
SELECT * FROM git_refs WHERE ref = :ref

-- name: git_tags
-- The tags that are known.
SELECT * FROM git_refs WHERE ref GLOB 'refs/tags/*'

-- name: set_git_ref
-- The same, written.
INSERT INTO git_refs (ref, known, time) VALUES (:ref, :known, :time)
ON CONFLICT (ref) DO UPDATE SET known = excluded.known, time = excluded.time

-- name: git_commit
-- Whether a commit was told.
SELECT 1 FROM git_commits WHERE sha = :sha

-- name: insert_git_commit
-- It is told, once.
INSERT INTO git_commits (sha) VALUES (:sha)
