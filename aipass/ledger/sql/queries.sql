-- The core: events, actions, requests, timers, notices. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_event
-- Facts of one batch, written together.
INSERT INTO events (id, time, kind, source, path, ref, run, cause, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_action
-- What a handler asked for, with its event.
INSERT INTO actions (id, event, handler, type, payload, state, outcome, effect) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: settle_action
-- The world part of an action was done, or cannot be.
UPDATE actions SET state = :state, outcome = :outcome WHERE id = :id

-- name: pending_actions
-- What was recorded and perhaps not done when the engine ended.
SELECT a.id, a.event, a.effect, e.run FROM actions a JOIN events e ON e.id = a.event
WHERE a.state = 'pending' ORDER BY a.id

-- name: extensions
-- Features of others that have tables here.
SELECT key, value FROM meta WHERE key LIKE 'extension.%'

-- name: pending_action
-- One of them, for another try.
SELECT a.id, a.event, a.effect, e.run FROM actions a JOIN events e ON e.id = a.event
WHERE a.state = 'pending' AND a.id = :id

-- name: last_ids
-- Ids go on from here.
SELECT (SELECT ifnull(max(id), 0) FROM events), (SELECT ifnull(max(id), 0) FROM actions)

-- name: insert_request
-- A spool request, once.
INSERT OR IGNORE INTO requests (id, event) VALUES (:id, :event)

-- name: answer_request
-- What became of it.
UPDATE requests SET exit = :exit, message = :message, dispatch = :dispatch WHERE id = :id AND exit IS NULL

-- name: request
-- For whoever waits for it.
SELECT * FROM requests WHERE id = :id

-- name: is_request
-- Whether a spool file was consumed already.
SELECT 1 FROM requests WHERE id = :id

-- name: timer
-- One timer.
SELECT * FROM timers WHERE key = :key

-- name: set_timer
-- Asked for, or asked for again: the wait begins anew and the count grows.
INSERT INTO timers (key, asked, after, event, count, detail) VALUES (:key, :asked, :after, :event, 1, :detail)
ON CONFLICT (key) DO UPDATE SET asked = :asked, after = :after, event = :event, count = count + 1, detail = :detail

-- name: drop_timer
-- It came due.
DELETE FROM timers WHERE key = :key

-- name: timers
-- All that wait.
SELECT * FROM timers

-- name: insert_notice
-- Something a person must see.
INSERT INTO notices (time, event, text, about) VALUES (:time, :event, :text, :about)

-- name: withdraw_notices
-- What they are about is over.
UPDATE notices SET closed = :now WHERE about = :about AND closed IS NULL

-- name: open_notices
-- The newest of those that still hold.
SELECT * FROM notices WHERE closed IS NULL ORDER BY id DESC LIMIT :limit

-- name: notices
-- The newest of them.
SELECT * FROM notices ORDER BY id DESC LIMIT :limit

-- name: insert_sequence
-- Ids begin after this one.
INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)

-- name: get_meta
-- A fact about the ledger itself.
SELECT value FROM meta WHERE key = :key

-- name: set_meta
-- The same, written.
INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value

-- name: event
-- One event.
SELECT * FROM events WHERE id = :id

-- name: events
-- The log, oldest first, from an id on.
SELECT * FROM events WHERE id > :after AND (:kind IS NULL OR kind GLOB :kind) ORDER BY id

-- name: last_events
-- The newest of the log, newest first.
SELECT * FROM events WHERE (:kind IS NULL OR kind GLOB :kind) ORDER BY id DESC LIMIT :limit

-- name: events_of_path
-- What happened to a path, newest first; that it went away under another name as well.
SELECT * FROM events WHERE path = :path
UNION SELECT * FROM events WHERE kind = 'file.moved' AND json_extract(detail, '$.from') = :path ORDER BY id DESC LIMIT :limit

-- name: actions_of_event
-- What handlers said to an event.
SELECT * FROM actions WHERE event = :event ORDER BY id

-- name: last_said
-- What a handler did last, from the newest on; what started an agent first.
SELECT event FROM actions WHERE handler = :handler ORDER BY type = 'Dispatch' DESC, id DESC LIMIT 1

-- name: tick_after
-- The timer of a handler that came due first after an event.
SELECT * FROM events WHERE kind = 'clock.tick' AND id > :event AND ref = :handler ORDER BY id LIMIT 1

-- name: old_events
-- The newest id that is older than a moment.
SELECT max(id) FROM events WHERE time < :time

-- name: protected_events
-- Causes of dispatches and of what waits, with all that led to them: never pruned.
WITH RECURSIVE chain (id) AS (
    SELECT cause FROM dispatches WHERE cause IS NOT NULL
    UNION SELECT event FROM senders UNION SELECT event FROM timers WHERE event IS NOT NULL
    UNION SELECT e.cause FROM events e JOIN chain c ON e.id = c.id WHERE e.cause IS NOT NULL
)
SELECT id FROM chain

-- name: prune_actions
-- Actions of pruned events go with them; none that is still to be done.
DELETE FROM actions WHERE event > :low AND event <= :high AND state <> 'pending' AND event NOT IN (SELECT id FROM temp.protected)

-- name: prune_events
-- A slice of the oldest events.
DELETE FROM events WHERE id > :low AND id <= :high AND id NOT IN (SELECT id FROM temp.protected)
    AND id NOT IN (SELECT event FROM actions WHERE state = 'pending')

-- name: prune_requests
-- Answers to requests that nobody can wait for any more.
DELETE FROM requests WHERE exit IS NOT NULL AND event <= :high

-- name: refused_of
-- Paths that the fence refused the last run of a dispatch, a few of them; without what its CLI always tries.
SELECT path, max(detail) AS detail FROM events
WHERE kind = 'write.denied' AND run = (SELECT max(id) FROM runs WHERE dispatch = :dispatch)
    AND json_extract(detail, '$.habit') IS NULL
GROUP BY path ORDER BY min(id) LIMIT 5
