-- The core: events, actions, requests, timers, notices. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_event
-- The events of one batch.
INSERT INTO events (id, time, kind, source, path, ref, run, cause, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_action
-- The actions of one batch, each with its event.
INSERT INTO actions (id, event, handler, type, payload, state, outcome, effect) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: settle_action
-- The side effect of an action has been performed, or cannot be.
UPDATE actions SET state = :state, outcome = :outcome WHERE id = :id

-- name: pending_actions
-- Recorded actions whose side effects may not have been performed when the engine ended.
SELECT a.id, a.event, a.effect, e.run FROM actions a JOIN events e ON e.id = a.event
WHERE a.state = 'pending' ORDER BY a.id

-- name: extensions
-- Features and plugins that have tables here.
SELECT key, value FROM meta WHERE key LIKE 'extension.%'

-- name: pending_action
-- One pending action, for another attempt.
SELECT a.id, a.event, a.effect, e.run FROM actions a JOIN events e ON e.id = a.event
WHERE a.state = 'pending' AND a.id = :id

-- name: last_ids
-- The highest ids of events and actions; new ids follow them.
SELECT (SELECT ifnull(max(id), 0) FROM events), (SELECT ifnull(max(id), 0) FROM actions)

-- name: insert_request
-- A request of the spool; does nothing for a known one (deduplication).
INSERT OR IGNORE INTO requests (id, event) VALUES (:id, :event)

-- name: answer_request
-- The answer to a request; the first answer stays.
UPDATE requests SET exit = :exit, message = :message, dispatch = :dispatch WHERE id = :id AND exit IS NULL

-- name: request
-- A request with its answer, for the process that waits for it.
SELECT * FROM requests WHERE id = :id

-- name: is_request
-- Whether the engine has read a spool file already.
SELECT 1 FROM requests WHERE id = :id

-- name: timer
-- One timer.
SELECT * FROM timers WHERE key = :key

-- name: set_timer
-- Set a timer; for a set one, start its wait again and increase its count.
INSERT INTO timers (key, asked, after, event, count, detail) VALUES (:key, :asked, :after, :event, 1, :detail)
ON CONFLICT (key) DO UPDATE SET asked = :asked, after = :after, event = :event, count = count + 1, detail = :detail

-- name: drop_timer
-- Delete a timer, because it came due.
DELETE FROM timers WHERE key = :key

-- name: timers
-- All timers.
SELECT * FROM timers

-- name: insert_notice
-- A notice (notification) for people.
INSERT INTO notices (time, event, text, about) VALUES (:time, :event, :text, :about)

-- name: withdraw_notices
-- Withdraw notices whose subject is over.
UPDATE notices SET closed = :now WHERE about = :about AND closed IS NULL

-- name: open_notices
-- The newest notices that are not withdrawn.
SELECT * FROM notices WHERE closed IS NULL ORDER BY id DESC LIMIT :limit

-- name: notices
-- The newest notices.
SELECT * FROM notices ORDER BY id DESC LIMIT :limit

-- name: insert_sequence
-- Make the ids of a table begin after a number.
INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)

-- name: get_meta
-- The value of a key about the ledger itself.
SELECT value FROM meta WHERE key = :key

-- name: set_meta
-- Set the value of a key about the ledger itself.
INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value

-- name: event
-- One event.
SELECT * FROM events WHERE id = :id

-- name: events
-- The events after an id, oldest first.
SELECT * FROM events WHERE id > :after AND (:kind IS NULL OR kind GLOB :kind) ORDER BY id

-- name: last_events
-- The newest events, newest first.
SELECT * FROM events WHERE (:kind IS NULL OR kind GLOB :kind) ORDER BY id DESC LIMIT :limit

-- name: events_of_path
-- The events of a path, newest first, also its move to another name.
SELECT * FROM events WHERE path = :path
UNION SELECT * FROM events WHERE kind = 'file.moved' AND json_extract(detail, '$.from') = :path ORDER BY id DESC LIMIT :limit

-- name: actions_of_event
-- The actions and outcomes of an event's handlers.
SELECT * FROM actions WHERE event = :event ORDER BY id

-- name: last_said
-- The event of a handler's last dispatch; without any, of its last action.
SELECT event FROM actions WHERE handler = :handler ORDER BY type = 'Dispatch' DESC, id DESC LIMIT 1

-- name: tick_after
-- The first tick of a handler's timer after an event.
SELECT * FROM events WHERE kind = 'clock.tick' AND id > :event AND ref = :handler ORDER BY id LIMIT 1

-- name: old_events
-- The newest id that is older than a moment.
SELECT max(id) FROM events WHERE time < :time

-- name: protected_events
-- Events that are never pruned: the causes of dispatches and of pending work, with their chains of causes.
WITH RECURSIVE chain (id) AS (
    SELECT cause FROM dispatches WHERE cause IS NOT NULL
    UNION SELECT event FROM senders UNION SELECT event FROM timers WHERE event IS NOT NULL
    UNION SELECT e.cause FROM events e JOIN chain c ON e.id = c.id WHERE e.cause IS NOT NULL
)
SELECT id FROM chain

-- name: prune_actions
-- Delete the actions of pruned events, but no pending action.
DELETE FROM actions WHERE event > :low AND event <= :high AND state <> 'pending' AND event NOT IN (SELECT id FROM temp.protected)

-- name: prune_events
-- Delete a slice of the oldest events.
DELETE FROM events WHERE id > :low AND id <= :high AND id NOT IN (SELECT id FROM temp.protected)
    AND id NOT IN (SELECT event FROM actions WHERE state = 'pending')

-- name: prune_requests
-- Delete answers to old requests, which no process waits for any more.
DELETE FROM requests WHERE exit IS NOT NULL AND event <= :high

-- name: refused_of
-- Up to five paths that the fence refused to the last run of a dispatch, without those that its CLI always tries.
SELECT path, max(detail) AS detail FROM events
WHERE kind = 'write.denied' AND run = (SELECT max(id) FROM runs WHERE dispatch = :dispatch)
    AND json_extract(detail, '$.habit') IS NULL
GROUP BY path ORDER BY min(id) LIMIT 5
