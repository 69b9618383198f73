-- Refs and commits that are recorded already. A line with `name:` begins a statement; the next line says its purpose.

-- name: git_ref
-- The last recorded entry of a ref's log.
SELECT * FROM git_refs WHERE ref = :ref

-- name: git_tags
-- The recorded tags.
SELECT * FROM git_refs WHERE ref GLOB 'refs/tags/*'

-- name: set_git_ref
-- Store the last recorded entry of a ref's log.
INSERT INTO git_refs (ref, known, time) VALUES (:ref, :known, :time)
ON CONFLICT (ref) DO UPDATE SET known = excluded.known, time = excluded.time

-- name: git_commit
-- Whether a commit is recorded.
SELECT 1 FROM git_commits WHERE sha = :sha

-- name: insert_git_commit
-- Record a commit.
INSERT INTO git_commits (sha) VALUES (:sha)
