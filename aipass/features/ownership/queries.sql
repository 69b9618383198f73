-- Runs whose writes are followed. A line with `name:` begins a statement; the next line says its purpose.

-- name: unfollowed
-- Runs that live or whose end nobody has followed up.
SELECT id, state, finished FROM runs WHERE state <> 'ended' OR sealed IS NULL ORDER BY finished IS NULL, finished, id
