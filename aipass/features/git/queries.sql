-- Contributions: the paths that agents wrote. A line with `name:` begins a statement; the next line says its purpose.

-- name: events_about
-- The events of one kind about one thing, newest first.
SELECT time, detail FROM events WHERE kind = :kind AND ref = :ref ORDER BY id DESC

-- name: put_work
-- Record the last run that wrote a path, with the file's fingerprint (seal).
INSERT INTO work (path, run, agent, dispatch, seal) VALUES (:path, :run, :agent, :dispatch, :seal)
ON CONFLICT (path) DO UPDATE SET run = excluded.run, agent = excluded.agent, dispatch = excluded.dispatch, seal = excluded.seal

-- name: put_late_work
-- The same for a run that ended without an engine: the entry of a later run stays.
INSERT INTO work (path, run, agent, dispatch, seal) VALUES (:path, :run, :agent, :dispatch, :seal)
ON CONFLICT (path) DO UPDATE SET run = excluded.run, agent = excluded.agent, dispatch = excluded.dispatch, seal = excluded.seal
WHERE excluded.run >= work.run

-- name: dispatches_of_phase
-- The dispatches of a phase: one for each attempt.
SELECT id FROM dispatches WHERE plan = :plan AND phase = :phase

-- name: work_of
-- The paths that an agent's ended runs were the last to write.
SELECT * FROM work WHERE agent = :agent

-- name: work_at
-- The last run that wrote a path.
SELECT * FROM work WHERE path = :path

-- name: run_sealed
-- Record that the fingerprints of a run's paths are complete.
UPDATE runs SET sealed = 1 WHERE id = :id

-- name: unsealed
-- Ended runs without fingerprints: their engine ended first.
SELECT * FROM runs WHERE state = 'ended' AND sealed IS NULL ORDER BY id
