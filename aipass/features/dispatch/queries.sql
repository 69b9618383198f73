-- Dispatches (jobs): queue, senders, runs, pauses. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_dispatch
-- New work.
INSERT INTO dispatches (agent, key, state, subject, priority, hops, created, cause, handler, reply_to)
VALUES (:agent, :key, 'queued', :subject, :priority, :hops, :created, :cause, :handler, :reply_to)

-- name: insert_sender
-- Somebody who wants the answer.
INSERT INTO senders (dispatch, sender, stem, text, file, event, wake, waiter, waits)
VALUES (:dispatch, :sender, :stem, :text, :file, :event, :wake, :waiter, :waits)

-- name: senders
-- Who wants the answer, in the order of asking.
SELECT id, dispatch, sender, stem, text, file, event, wake FROM senders WHERE dispatch = :dispatch ORDER BY id

-- name: dispatch_of_sender
-- Which dispatch one who asked got, by the event with which he did.
SELECT dispatch FROM senders WHERE event = :event AND sender = :sender AND stem = :stem ORDER BY id LIMIT 1

-- name: all_senders
-- For lists: names, and how the texts begin.
SELECT dispatch, sender, substr(text, 1, 200) AS start FROM senders ORDER BY id

-- name: open_of_key
-- What a new request with this key may join: the queued one first.
SELECT id, state, attempts FROM dispatches
WHERE agent = :agent AND key = :key AND state IN ('queued', 'running', 'blocked')
ORDER BY (state = 'queued' AND attempts = 0) DESC, (state = 'queued') DESC, id DESC

-- name: dispatch
-- One dispatch.
SELECT * FROM dispatches WHERE id = :id

-- name: queued
-- What waits, for the queue in memory.
SELECT id, agent, priority, not_before FROM dispatches WHERE state = 'queued' ORDER BY id

-- name: find_dispatches
-- For views: all that is asked for.
SELECT id, agent, key, state, subject, attempts FROM dispatches
WHERE (:agent IS NULL OR agent = :agent) AND (:state IS NULL OR state = :state) AND (:key IS NULL OR key = :key)
ORDER BY id

-- name: raise_priority
-- A sender in more of a hurry joined.
UPDATE dispatches SET priority = max(priority, :priority) WHERE id = :id

-- name: dispatch_running
-- Its run is about to be started; the first one of a reply goes on with the conversation that it replies to.
UPDATE dispatches SET session = CASE WHEN attempts > 0 THEN session
        ELSE (SELECT d.session FROM dispatches d WHERE d.id = dispatches.reply_to) END,
    state = 'running', attempts = attempts + 1, tries = tries + 1,
    started = ifnull(started, :now), reason = NULL WHERE id = :id

-- name: dispatch_again
-- It waits for another attempt.
UPDATE dispatches SET state = 'queued', not_before = :not_before, reason = :reason,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_afresh
-- Its conversation is lost: it begins anew without, which costs no attempt.
UPDATE dispatches SET state = 'queued', not_before = 0, tries = tries - 1, reason = :reason, session = NULL,
    usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_limited
-- It waits for the end of a limit, which costs it no attempt.
UPDATE dispatches SET state = 'queued', not_before = 0, tries = tries - 1, limited = ifnull(limited, 0) + :wait, reason = :reason,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: last_faults
-- How an agent's last dispatches ended, newest first; one that ended otherwise than by a fault has none.
SELECT fault FROM dispatches
WHERE agent = :agent AND finished > :since AND state IN ('succeeded', 'failed') ORDER BY finished DESC, id DESC LIMIT :limit

-- name: forget_faults
-- Somebody has mended what was wrong.
UPDATE dispatches SET fault = NULL WHERE agent = :agent AND fault IS NOT NULL

-- name: dispatch_hops
-- How long the chain is in which it goes on now.
UPDATE dispatches SET hops = :hops WHERE id = :id

-- name: dispatch_reopened
-- Somebody asked for it again.
UPDATE dispatches SET state = 'queued', tries = 0, not_before = 0, started = NULL, finished = NULL, reason = NULL,
    answer = NULL, exit = NULL, fault = NULL, limited = NULL
WHERE id = :id

-- name: dispatch_final
-- It has reached a state that it leaves only by `retry`.
UPDATE dispatches SET state = :state, finished = :now, reason = :reason, exit = :exit, fault = :fault,
    session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_blocked
-- It cannot go on without a person.
UPDATE dispatches SET state = 'blocked', reason = :reason, session = ifnull(:session, session), usage = ifnull(:usage, usage)
WHERE id = :id

-- name: dispatch_answer
-- Where its answer lies.
UPDATE dispatches SET answer = :answer WHERE id = :id

-- name: insert_run
-- An attempt, recorded before it is started.
INSERT INTO runs (dispatch, agent, state, created, driver) VALUES (:dispatch, :agent, 'starting', :now, :driver)

-- name: run_started
-- Its first process lives.
UPDATE runs SET state = 'running', pid = :pid, started = :started WHERE id = :id AND state = 'starting'

-- name: run_stopping
-- It was told to stop; kept so that a restarted engine tells it again.
UPDATE runs SET stop = :reason WHERE id = :id AND stop IS NULL

-- name: run_ended
-- Its whole process tree is gone.
UPDATE runs SET state = 'ended', finished = :finished, exit = :exit, signal = :signal, outcome = :outcome WHERE id = :id

-- name: run
-- One run.
SELECT * FROM runs WHERE id = :id

-- name: live_runs
-- Runs that the ledger believes to live.
SELECT * FROM runs WHERE state <> 'ended' ORDER BY id

-- name: live_run_of
-- The attempt of a dispatch that lives.
SELECT * FROM runs WHERE dispatch = :dispatch AND state <> 'ended'

-- name: run_before
-- An agent's attempt before this one.
SELECT * FROM runs WHERE agent = :agent AND id < :id ORDER BY id DESC LIMIT 1

-- name: runs_of
-- All attempts of a dispatch.
SELECT * FROM runs WHERE dispatch = :dispatch ORDER BY id

-- name: run_hops
-- How long the chain is that a run stands in.
SELECT d.hops, d.agent FROM runs r JOIN dispatches d ON d.id = r.dispatch WHERE r.id = :run

-- name: runs_since
-- Start times of an hour, for limits that survive a restart.
SELECT agent, created FROM runs WHERE created > :since ORDER BY created

-- name: firings_since
-- What handlers asked for within an hour, for limits that survive a restart.
SELECT a.handler, e.time FROM actions a JOIN events e ON e.id = a.event
WHERE e.id > (SELECT ifnull(max(id), 0) FROM events WHERE time <= :since) AND a.type = 'Dispatch' AND a.state <> 'failed'
ORDER BY e.id

-- name: set_pause
-- Nothing starts under this name until it is resumed, or until a limit ends.
INSERT OR REPLACE INTO pauses (kind, name, reason, since, until) VALUES (:kind, :name, :reason, :since, :until)

-- name: pause
-- One of them.
SELECT * FROM pauses WHERE kind = :kind AND name = :name

-- name: drop_pause
-- It may start again.
DELETE FROM pauses WHERE name = :name AND (:kind IS NULL OR kind = :kind)

-- name: pauses
-- All of them.
SELECT * FROM pauses ORDER BY kind, name

-- name: last_dispatch_of
-- What an agent was asked for last.
SELECT * FROM dispatches WHERE agent = :agent ORDER BY id DESC LIMIT 1

-- name: dispatches_of_event
-- What an event started or joined.
SELECT d.id, d.agent, d.state FROM dispatches d WHERE d.id IN (SELECT dispatch FROM senders WHERE event = :event) ORDER BY d.id

-- name: list_dispatches
-- All dispatches.
SELECT * FROM dispatches ORDER BY id

-- name: count_states
-- How many there are of each state.
SELECT state, count(*) FROM dispatches GROUP BY state

-- name: count_agents
-- How many run and wait for each agent.
SELECT agent, state, count(*) FROM dispatches WHERE state IN ('queued', 'running') GROUP BY agent, state

-- name: dispatch_of_answer
-- Which dispatch an answer belongs to.
SELECT id FROM dispatches WHERE answer = :path

-- name: old_runs
-- Runs whose folders may go.
SELECT id FROM runs WHERE state = 'ended' AND finished < :time AND id > :after ORDER BY id LIMIT :limit

-- name: work_now
-- What an agent works on.
SELECT r.id AS run, r.created, d.id AS dispatch, d.plan, d.phase, d.subject,
(SELECT text FROM senders WHERE dispatch = d.id ORDER BY id LIMIT 1) AS task
FROM runs r JOIN dispatches d ON d.id = r.dispatch WHERE r.agent = :agent AND r.state <> 'ended'

-- name: waiting_agents
-- Whose live runs wait.
SELECT r.agent FROM runs r JOIN messages m ON m.dispatch = r.dispatch AND m.run = r.id
WHERE r.state <> 'ended' AND m.asks AND m.answered IS NULL AND m.closed IS NULL AND m.waits > :now
UNION
SELECT r.agent FROM runs r CROSS JOIN senders s INDEXED BY senders_waiter ON s.waiter = r.id CROSS JOIN dispatches d ON d.id = s.dispatch
WHERE r.state <> 'ended' AND s.waits > :now AND d.state IN ('queued', 'running', 'blocked')
