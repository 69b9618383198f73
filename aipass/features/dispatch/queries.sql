-- Dispatches (jobs): queue, senders, runs, pauses. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_dispatch
-- Insert a new dispatch into the queue.
INSERT INTO dispatches (agent, key, state, subject, priority, hops, created, cause, handler, reply_to)
VALUES (:agent, :key, 'queued', :subject, :priority, :hops, :created, :cause, :handler, :reply_to)

-- name: insert_sender
-- Add a sender, who gets the answer, to a dispatch.
INSERT INTO senders (dispatch, sender, stem, text, file, event, wake, waiter, waits)
VALUES (:dispatch, :sender, :stem, :text, :file, :event, :wake, :waiter, :waits)

-- name: senders
-- The senders of a dispatch, in the order of their requests.
SELECT id, dispatch, sender, stem, text, file, event, wake FROM senders WHERE dispatch = :dispatch ORDER BY id

-- name: dispatch_of_sender
-- The dispatch that a sender's request went to, found by the event of the request.
SELECT dispatch FROM senders WHERE event = :event AND sender = :sender AND stem = :stem ORDER BY id LIMIT 1

-- name: all_senders
-- For lists: all senders with the beginning of their texts.
SELECT dispatch, sender, substr(text, 1, 200) AS start FROM senders ORDER BY id

-- name: open_of_key
-- Deduplication: the open dispatches that a new request with this key may join, a queued one first.
SELECT id, state, attempts FROM dispatches
WHERE agent = :agent AND key = :key AND state IN ('queued', 'running', 'blocked')
ORDER BY (state = 'queued' AND attempts = 0) DESC, (state = 'queued') DESC, id DESC

-- name: dispatch
-- One dispatch.
SELECT * FROM dispatches WHERE id = :id

-- name: queued
-- All queued dispatches, to rebuild the queue in memory.
SELECT id, agent, priority, not_before FROM dispatches WHERE state = 'queued' ORDER BY id

-- name: find_dispatches
-- For views: dispatches by agent, state and key; NULL means any.
SELECT id, agent, key, state, subject, attempts FROM dispatches
WHERE (:agent IS NULL OR agent = :agent) AND (:state IS NULL OR state = :state) AND (:key IS NULL OR key = :key)
ORDER BY id

-- name: raise_priority
-- Raise the priority to that of a sender who joined; it never falls.
UPDATE dispatches SET priority = max(priority, :priority) WHERE id = :id

-- name: dispatch_running
-- Count an attempt before its run starts. The first attempt of a reply takes over the session (conversation) it replies to.
UPDATE dispatches SET session = CASE WHEN attempts > 0 THEN session
        ELSE (SELECT d.session FROM dispatches d WHERE d.id = dispatches.reply_to) END,
    state = 'running', attempts = attempts + 1, tries = tries + 1,
    started = ifnull(started, :now), reason = NULL WHERE id = :id

-- name: dispatch_again
-- Requeue a dispatch for another attempt, not before a given time.
UPDATE dispatches SET state = 'queued', not_before = :not_before, reason = :reason,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_afresh
-- Requeue a dispatch without its lost session (conversation); `tries` is taken back, so this costs no attempt.
UPDATE dispatches SET state = 'queued', not_before = 0, tries = tries - 1, reason = :reason, session = NULL,
    usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_limited
-- Requeue a dispatch until a limit ends; `tries` is taken back, so this costs no attempt.
UPDATE dispatches SET state = 'queued', not_before = 0, tries = tries - 1, limited = ifnull(limited, 0) + :wait, reason = :reason,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: last_faults
-- The faults of an agent's last finished dispatches, newest first; NULL for one that ended without a fault.
SELECT fault FROM dispatches
WHERE agent = :agent AND finished > :since AND state IN ('succeeded', 'failed') ORDER BY finished DESC, id DESC LIMIT :limit

-- name: forget_faults
-- Forget an agent's faults: a person has repaired the cause and resumed the agent.
UPDATE dispatches SET fault = NULL WHERE agent = :agent AND fault IS NOT NULL

-- name: dispatch_hops
-- Set the length of the chain of causes after a reply to a blocked dispatch.
UPDATE dispatches SET hops = :hops WHERE id = :id

-- name: dispatch_reopened
-- Requeue a dispatch for `aipass retry`, with a fresh count of attempts.
UPDATE dispatches SET state = 'queued', tries = 0, not_before = 0, started = NULL, finished = NULL, reason = NULL,
    answer = NULL, exit = NULL, fault = NULL, limited = NULL
WHERE id = :id

-- name: dispatch_final
-- Set a final state, which only `retry` ends.
UPDATE dispatches SET state = :state, finished = :now, reason = :reason, exit = :exit, fault = :fault,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_blocked
-- Block a dispatch until a person or an answer unblocks it.
UPDATE dispatches SET state = 'blocked', reason = :reason, session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_answer
-- Set the path of a dispatch's answer.
UPDATE dispatches SET answer = :answer WHERE id = :id

-- name: insert_run
-- Record a run before its process is started, so that a crash in between loses nothing.
INSERT INTO runs (dispatch, agent, state, created, driver) VALUES (:dispatch, :agent, 'starting', :now, :driver)

-- name: run_started
-- Note a run's first process; a repeated message changes nothing.
UPDATE runs SET state = 'running', pid = :pid, started = :started WHERE id = :id AND state = 'starting'

-- name: run_stopping
-- Note the request to stop a run, so that a restarted engine repeats it. The first reason is kept.
UPDATE runs SET stop = :reason WHERE id = :id AND stop IS NULL

-- name: run_ended
-- Record the end of a run's whole process tree.
UPDATE runs SET state = 'ended', finished = :finished, exit = :exit, signal = :signal, outcome = :outcome WHERE id = :id

-- name: run
-- One run.
SELECT * FROM runs WHERE id = :id

-- name: live_runs
-- Runs without a recorded end.
SELECT * FROM runs WHERE state <> 'ended' ORDER BY id

-- name: live_run_of
-- The live run of a dispatch.
SELECT * FROM runs WHERE dispatch = :dispatch AND state <> 'ended'

-- name: run_before
-- The agent's previous run, of any dispatch.
SELECT * FROM runs WHERE agent = :agent AND id < :id ORDER BY id DESC LIMIT 1

-- name: runs_of
-- All runs of a dispatch, oldest first.
SELECT * FROM runs WHERE dispatch = :dispatch ORDER BY id

-- name: run_hops
-- The length of the chain of causes of a run's dispatch, and its agent.
SELECT d.hops, d.agent FROM runs r JOIN dispatches d ON d.id = r.dispatch WHERE r.id = :run

-- name: runs_since
-- Start times of runs within an hour, for limits that survive a restart.
SELECT agent, created FROM runs WHERE created > :since ORDER BY created

-- name: firings_since
-- Dispatches that handlers requested within an hour, for limits that survive a restart.
SELECT a.handler, e.time FROM actions a JOIN events e ON e.id = a.event
WHERE e.id > (SELECT ifnull(max(id), 0) FROM events WHERE time <= :since) AND a.type = 'Dispatch' AND a.state <> 'failed'
ORDER BY e.id

-- name: set_pause
-- Pause a name until a person resumes it (`until` NULL) or until a limit ends.
INSERT OR REPLACE INTO pauses (kind, name, reason, since, until) VALUES (:kind, :name, :reason, :since, :until)

-- name: pause
-- One pause.
SELECT * FROM pauses WHERE kind = :kind AND name = :name

-- name: drop_pause
-- End the pauses of a name, of one kind or (NULL) of all kinds.
DELETE FROM pauses WHERE name = :name AND (:kind IS NULL OR kind = :kind)

-- name: pauses
-- All pauses.
SELECT * FROM pauses ORDER BY kind, name

-- name: last_dispatch_of
-- An agent's newest dispatch.
SELECT * FROM dispatches WHERE agent = :agent ORDER BY id DESC LIMIT 1

-- name: dispatches_of_event
-- The dispatches that an event created or joined.
SELECT d.id, d.agent, d.state FROM dispatches d WHERE d.id IN (SELECT dispatch FROM senders WHERE event = :event) ORDER BY d.id

-- name: list_dispatches
-- All dispatches.
SELECT * FROM dispatches ORDER BY id

-- name: count_states
-- The number of dispatches in each state.
SELECT state, count(*) FROM dispatches GROUP BY state

-- name: count_agents
-- The numbers of running and queued dispatches of each agent.
SELECT agent, state, count(*) FROM dispatches WHERE state IN ('queued', 'running') GROUP BY agent, state

-- name: dispatch_of_answer
-- The dispatch of an answer's path.
SELECT id FROM dispatches WHERE answer = :path

-- name: old_runs
-- Ended runs whose folders may be removed.
SELECT id FROM runs WHERE state = 'ended' AND finished < :time AND id > :after ORDER BY id LIMIT :limit

-- name: work_now
-- The live run of an agent, with its dispatch and the first sender's text.
SELECT r.id AS run, r.created, d.id AS dispatch, d.plan, d.phase, d.subject,
(SELECT text FROM senders WHERE dispatch = d.id ORDER BY id LIMIT 1) AS task
FROM runs r JOIN dispatches d ON d.id = r.dispatch WHERE r.agent = :agent AND r.state <> 'ended'

-- name: waiting_agents
-- Agents whose live run waits for an answer or another dispatch; their runs do not count against `limits.concurrency`.
SELECT r.agent FROM runs r JOIN messages m ON m.dispatch = r.dispatch AND m.run = r.id
WHERE r.state <> 'ended' AND m.asks AND m.answered IS NULL AND m.closed IS NULL AND m.waits > :now
UNION
SELECT r.agent FROM runs r CROSS JOIN senders s INDEXED BY senders_waiter ON s.waiter = r.id CROSS JOIN dispatches d ON d.id = s.dispatch
WHERE r.state <> 'ended' AND s.waits > :now AND d.state IN ('queued', 'running', 'blocked')
