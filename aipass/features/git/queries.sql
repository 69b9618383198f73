-- What agents wrote: contributions. A line with `name:` begins a statement; the next line says its purpose.

-- name: events_about
-- What was told of one thing that a kind of events names, newest first.
SELECT time, detail FROM events WHERE kind = :kind AND ref = :ref ORDER BY id DESC

-- name: put_work
-- What a run has written, and nobody after it.
INSERT INTO work (path, run, agent, dispatch, seal) VALUES (:path, :run, :agent, :dispatch, :seal)
ON CONFLICT (path) DO UPDATE SET run = excluded.run, agent = excluded.agent, dispatch = excluded.dispatch, seal = excluded.seal

-- name: put_late_work
-- The same of a run that ended while nobody looked: what a later one wrote stays.
INSERT INTO work (path, run, agent, dispatch, seal) VALUES (:path, :run, :agent, :dispatch, :seal)
ON CONFLICT (path) DO UPDATE SET run = excluded.run, agent = excluded.agent, dispatch = excluded.dispatch, seal = excluded.seal
WHERE excluded.run >= work.run

-- name: dispatches_of_phase
-- All attempts at a phase of a plan.
SELECT id FROM dispatches WHERE plan = :plan AND phase = :phase

-- name: work_of
-- What an agent's runs that ended have written last.
SELECT * FROM work WHERE agent = :agent

-- name: work_at
-- Who wrote a path last.
SELECT * FROM work WHERE path = :path

-- name: run_sealed
-- What it wrote is noted.
UPDATE runs SET sealed = 1 WHERE id = :id

-- name: unsealed
-- Runs whose end nobody has followed up.
SELECT * FROM runs WHERE state = 'ended' AND sealed IS NULL ORDER BY id
