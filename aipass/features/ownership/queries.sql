-- Runs whose writes are followed. A line with `name:` begins a statement; the next line says its purpose.

-- name: unfollowed
-- Live runs, and ended ones whose journal of writes no engine has read to its end.
SELECT id, state, finished FROM runs WHERE state <> 'ended' OR sealed IS NULL ORDER BY finished IS NULL, finished, id
