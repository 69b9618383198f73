-- Every statement of the ledger by its name. A line with `name:` begins one; the next line says why.

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

-- name: file
-- What is known of one file.
SELECT ino, size, mtime, changed FROM files WHERE dir = ? AND name = ?

-- name: put_file
-- What is known now.
INSERT INTO files (dir, name, ino, size, mtime, changed) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (dir, name) DO UPDATE SET ino = excluded.ino, size = excluded.size, mtime = excluded.mtime, changed = excluded.changed

-- name: drop_file
-- It is gone.
DELETE FROM files WHERE dir = ? AND name = ?

-- name: files_in
-- What is known of one folder.
SELECT name, ino, size, mtime, changed FROM files WHERE dir = ?

-- name: files_below
-- What is known of a folder and all below it. The end is the folder's name with `0`, which follows `/`.
SELECT dir, name, ino, size, mtime, changed FROM files WHERE dir = :dir OR (dir >= :low AND dir < :high)

-- name: all_files
-- What is known of the whole tree.
SELECT dir, name, ino, size, mtime, changed FROM files

-- name: known_dirs
-- Folders that hold a known file.
SELECT DISTINCT dir FROM files

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

-- name: events_about
-- What was told of one thing that a kind of events names, newest first.
SELECT time, detail FROM events WHERE kind = :kind AND ref = :ref ORDER BY id DESC

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

-- name: old_runs
-- Runs whose folders may go.
SELECT id FROM runs WHERE state = 'ended' AND finished < :time AND id > :after ORDER BY id LIMIT :limit

-- name: nested_roots
-- Folders below the root that are roots of their own.
SELECT dir FROM files WHERE name = CAST('aipass.toml' AS BLOB) AND dir <> x''

-- name: insert_plan
-- A plan begins.
INSERT INTO plans (id, title, file, state, body, started, hops)
VALUES (:id, :title, :file, 'running', :body, :now, :hops)

-- name: insert_phase
-- One of its phases.
INSERT INTO phases (plan, id, place, agent, state) VALUES (:plan, :id, :place, :agent, 'waiting')

-- name: drop_plan
-- A plan that ended begins anew.
DELETE FROM plans WHERE id = :id

-- name: drop_phases
-- With all its phases.
DELETE FROM phases WHERE plan = :id

-- name: plan
-- One plan.
SELECT * FROM plans WHERE id = :id

-- name: all_plans
-- Every plan that ever began.
SELECT * FROM plans ORDER BY id

-- name: open_plans
-- Plans that run, or are paused.
SELECT * FROM plans WHERE state IN ('running', 'paused') ORDER BY id

-- name: phases_of
-- The phases of a plan, with what is known of their dispatch and its live run.
SELECT p.*, d.state AS dispatch_state, r.id AS run,
    (SELECT max(id) FROM runs WHERE dispatch = p.dispatch) AS last_run
FROM phases p
LEFT JOIN dispatches d ON d.id = p.dispatch
LEFT JOIN runs r ON r.dispatch = p.dispatch AND r.state <> 'ended'
WHERE p.plan = :plan ORDER BY p.place

-- name: phase
-- One phase.
SELECT * FROM phases WHERE plan = :plan AND id = :id

-- name: plan_state
-- A plan goes on, or ends.
UPDATE plans SET state = :state, reason = :reason,
    finished = CASE WHEN :state IN ('done', 'failed', 'stopped') THEN :now ELSE NULL END
WHERE id = :id

-- name: plan_hops
-- Somebody further down a chain of agents has it go on.
UPDATE plans SET hops = :hops WHERE id = :id

-- name: phase_state
-- A phase goes on; one that begins has nothing behind it.
UPDATE phases SET state = :state, reason = :reason,
    began = CASE WHEN :state = 'running' THEN :now ELSE began END,
    handoff = CASE WHEN :state IN ('ready', 'waiting') THEN NULL ELSE handoff END,
    dispatch = CASE WHEN :state IN ('ready', 'waiting') THEN NULL ELSE dispatch END,
    finished = CASE WHEN :state IN ('done', 'failed', 'stopped') THEN :now ELSE NULL END
WHERE plan = :plan AND id = :id

-- name: phase_dispatch
-- The work of a phase is asked for.
UPDATE phases SET dispatch = :dispatch WHERE plan = :plan AND id = :id

-- name: dispatch_phase
-- A dispatch knows whose work it is.
UPDATE dispatches SET plan = :plan, phase = :phase WHERE id = :dispatch

-- name: phase_handoff
-- Its agent says that it is delivered.
UPDATE phases SET handoff = :handoff WHERE plan = :plan AND id = :id

-- name: phase_reason
-- What is to be said of it, though it is what it was.
UPDATE phases SET reason = :reason WHERE plan = :plan AND id = :id

-- name: last_check
-- How the last checks of a phase ended.
SELECT * FROM events WHERE kind = 'check.finished' AND ref = :ref AND time >= :since ORDER BY id DESC LIMIT 1

-- name: add_written
-- A run wrote something of what its phase delivers.
INSERT OR IGNORE INTO written (plan, phase, path) VALUES (:plan, :phase, :path)

-- name: written_of
-- What a phase's runs wrote of that which it delivers.
SELECT path FROM written WHERE plan = :plan AND phase = :phase ORDER BY path

-- name: drop_written
-- A phase, or with phase NULL a plan, begins anew.
DELETE FROM written WHERE plan = :plan AND phase = ifnull(:phase, phase)

-- name: phase_checking
-- A check runs, or has ended.
UPDATE phases SET checking = :checking, seal = :seal WHERE plan = :plan AND id = :id

-- name: checks
-- The checks that run.
SELECT p.* FROM phases p WHERE checking IS NOT NULL

-- name: handed_over
-- Phases whose run lives on and has nothing more to do with them.
SELECT p.*, r.id AS run FROM phases p JOIN runs r ON r.dispatch = p.dispatch
WHERE r.state <> 'ended' AND p.state NOT IN ('ready', 'running', 'delivered')

-- name: asked_by
-- The event that led to an action.
SELECT e.* FROM events e JOIN actions a ON a.event = e.id WHERE a.id = :action

-- name: phase_of_dispatch
-- The phase that a dispatch is the work of.
SELECT * FROM phases WHERE dispatch = :dispatch

-- name: plan_body
-- A changed plan is taken over.
UPDATE plans SET title = :title, file = :file, body = :body WHERE id = :id

-- name: phase_place
-- A phase that has not begun may be another's now.
UPDATE phases SET place = :place, agent = :agent WHERE plan = :plan AND id = :id

-- name: drop_phase
-- A phase that has not begun is no part of the plan any more.
DELETE FROM phases WHERE plan = :plan AND id = :id

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

-- name: unfollowed
-- Runs that live or whose end nobody has followed up.
SELECT id, state, finished FROM runs WHERE state <> 'ended' OR sealed IS NULL ORDER BY finished IS NULL, finished, id

-- name: unsealed
-- Runs whose end nobody has followed up.
SELECT * FROM runs WHERE state = 'ended' AND sealed IS NULL ORDER BY id

-- name: phase_opening
-- Its PR is being opened, or has been.
UPDATE phases SET opening = :opening, seal = :seal WHERE plan = :plan AND id = :id

-- name: phase_pr
-- Its PR.
UPDATE phases SET pr = :pr WHERE plan = :plan AND id = :id

-- name: refused_of
-- Paths that the fence refused the last run of a dispatch, a few of them; without what its CLI always tries.
SELECT path, max(detail) AS detail FROM events
WHERE kind = 'write.denied' AND run = (SELECT max(id) FROM runs WHERE dispatch = :dispatch)
    AND json_extract(detail, '$.habit') IS NULL
GROUP BY path ORDER BY min(id) LIMIT 5

-- name: insert_memory
-- Something to be remembered.
INSERT INTO memory (source, agent, text, tags, path, dispatch, run, time, detail)
VALUES (:source, :agent, :text, :tags, :path, :dispatch, :run, :time, :detail)

-- name: put_note
-- An entry of a state file.
INSERT INTO notes (id, agent, source, place, since, changed, earlier) VALUES (:id, :agent, :source, :place, :stamp, :stamp, '[]')

-- name: known_notes
-- Entries that stand in a file, and those that have gone since a copy of it was made.
SELECT n.*, m.text, m.tags FROM notes n JOIN memory m ON m.id = n.id
WHERE n.agent = :agent AND n.source = :source AND (n.gone IS NULL OR n.gone > :base) ORDER BY n.place, n.id

-- name: open_notes
-- Entries that stand in an agent's files, in their order.
SELECT n.id, n.source, n.place, m.text, m.tags, m.time FROM notes n JOIN memory m ON m.id = n.id
WHERE n.agent = :agent AND n.gone IS NULL ORDER BY n.place, n.id

-- name: note
-- One entry.
SELECT n.*, m.text FROM notes n JOIN memory m ON m.id = n.id WHERE n.id = :id

-- name: note_gone
-- It stands in no file any more.
UPDATE notes SET gone = :stamp WHERE id = :id AND gone IS NULL

-- name: note_place
-- Where it stands in its list.
UPDATE notes SET place = :place WHERE id = :id

-- name: note_changed
-- It says something else.
UPDATE notes SET changed = :stamp, earlier = :earlier WHERE id = :id

-- name: change_memory
-- It says something else.
UPDATE memory SET text = :text, tags = :tags WHERE id = :id

-- name: state
-- What is to stand in a file.
SELECT * FROM states WHERE agent = :agent AND file = :file

-- name: states
-- What is to stand in all files.
SELECT agent, file, body FROM states

-- name: put_state
-- What is to stand in a file from now on.
INSERT INTO states (agent, file, updated, doing, body) VALUES (:agent, :file, :updated, :doing, :body)
ON CONFLICT (agent, file) DO UPDATE SET updated = excluded.updated, doing = excluded.doing, body = excluded.body

-- name: put_copy
-- What an agent may have read.
INSERT OR REPLACE INTO copies (agent, file, updated, engine, doing) VALUES (:agent, :file, :updated, :engine, :doing)

-- name: copies
-- What an agent may have read, newest first.
SELECT updated, engine, doing FROM copies WHERE agent = :agent AND file = :file ORDER BY updated DESC

-- name: drop_copies
-- Only the newest are kept.
DELETE FROM copies WHERE agent = :agent AND file = :file AND updated <= (SELECT updated FROM copies
WHERE agent = :agent AND file = :file ORDER BY updated DESC LIMIT 1 OFFSET :keep)

-- name: last_sessions
-- What an agent did last, newest first.
SELECT * FROM memory WHERE agent = :agent AND source = 'session' AND run IS NOT NULL ORDER BY id DESC LIMIT :limit

-- name: session_of
-- What is remembered of one run.
SELECT * FROM memory WHERE agent = :agent AND source = 'session' AND run = :run

-- name: check_of
-- What the checks of what a run delivered came to last.
SELECT detail FROM events WHERE kind = 'check.finished' AND run = :run ORDER BY id DESC LIMIT 1

-- name: work_now
-- What an agent works on.
SELECT r.id AS run, r.created, d.id AS dispatch, d.plan, d.phase, d.subject,
(SELECT text FROM senders WHERE dispatch = d.id ORDER BY id LIMIT 1) AS task
FROM runs r JOIN dispatches d ON d.id = r.dispatch WHERE r.agent = :agent AND r.state <> 'ended'

-- name: insert_message
-- Somebody says something to somebody.
INSERT INTO messages (sender, recipient, subject, text, files, reply_to, dispatch, run, sent, asks, options, waits)
VALUES (:sender, :recipient, :subject, :text, :files, :reply_to, :dispatch, :run, :sent, :asks, :options, :waits)

-- name: message
-- One message.
SELECT * FROM messages WHERE id = :id

-- name: unread
-- What somebody has not read yet, oldest first.
SELECT * FROM messages WHERE recipient = :recipient AND read IS NULL ORDER BY id LIMIT :limit

-- name: unread_ids
-- The same, by their ids alone.
SELECT id FROM messages WHERE recipient = :recipient AND read IS NULL

-- name: count_unread
-- How much that is.
SELECT count(*) AS number FROM messages WHERE recipient = :recipient AND read IS NULL

-- name: count_waiting
-- The same, up to a limit.
SELECT count(*) AS number FROM (SELECT 1 FROM messages WHERE recipient = :recipient AND read IS NULL LIMIT :limit)

-- name: messages_of
-- What somebody was told, newest first.
SELECT * FROM messages WHERE recipient = :recipient ORDER BY id DESC LIMIT :limit

-- name: message_delivered
-- It lies where its recipient finds it.
UPDATE messages SET delivered = :now WHERE id = :id AND delivered IS NULL

-- name: message_shown
-- A run's prompt holds it.
UPDATE messages SET shown = :run WHERE id = :id

-- name: shown_messages
-- What a run's prompt holds.
SELECT * FROM messages WHERE shown = :run ORDER BY id

-- name: message_read
-- Its recipient has seen it.
UPDATE messages SET read = :now, delivered = ifnull(delivered, :now) WHERE id = :id AND recipient = :recipient AND read IS NULL

-- name: questions
-- What was asked, oldest first.
SELECT * FROM messages WHERE asks AND (:all OR (answered IS NULL AND closed IS NULL)) ORDER BY id

-- name: open_questions
-- What a dispatch has asked and was not told.
SELECT * FROM messages WHERE dispatch = :dispatch AND asks AND answered IS NULL AND closed IS NULL ORDER BY id

-- name: question_work
-- A dispatch shall answer it.
UPDATE messages SET work = :work WHERE id = :id

-- name: questions_of_work
-- What a dispatch shall answer, and has not.
SELECT * FROM messages WHERE work = :work AND asks AND answered IS NULL AND closed IS NULL ORDER BY id

-- name: question_answered
-- It has an answer.
UPDATE messages SET answer = :answer, answered = :now, answerer = :by, read = ifnull(read, :now), delivered = ifnull(delivered, :now)
WHERE id = :id AND answered IS NULL AND closed IS NULL

-- name: question_closed
-- No answer is wanted any more.
UPDATE messages SET closed = :reason, read = ifnull(read, :now), delivered = ifnull(delivered, :now)
WHERE id = :id AND answered IS NULL AND closed IS NULL

-- name: waits_of
-- What an agent's live run waits for, and does nothing else: answers, and work that it gave to others.
SELECT m.recipient, m.work FROM runs r JOIN messages m ON m.dispatch = r.dispatch AND m.run = r.id
WHERE r.agent = :agent AND r.state <> 'ended' AND m.asks AND m.answered IS NULL AND m.closed IS NULL AND m.waits > :now
UNION ALL
SELECT d.agent, d.id FROM runs r CROSS JOIN senders s INDEXED BY senders_waiter ON s.waiter = r.id CROSS JOIN dispatches d ON d.id = s.dispatch
WHERE r.agent = :agent AND r.state <> 'ended' AND s.waits > :now AND d.state IN ('queued', 'running', 'blocked')

-- name: waiting_agents
-- Whose live runs wait.
SELECT r.agent FROM runs r JOIN messages m ON m.dispatch = r.dispatch AND m.run = r.id
WHERE r.state <> 'ended' AND m.asks AND m.answered IS NULL AND m.closed IS NULL AND m.waits > :now
UNION
SELECT r.agent FROM runs r CROSS JOIN senders s INDEXED BY senders_waiter ON s.waiter = r.id CROSS JOIN dispatches d ON d.id = s.dispatch
WHERE r.state <> 'ended' AND s.waits > :now AND d.state IN ('queued', 'running', 'blocked')

-- name: unheard_answers
-- Answers that came while a run lived, and that it has not read.
SELECT q.id, r.id AS reply FROM messages r JOIN messages q ON q.id = r.reply_to
WHERE r.recipient = :agent AND r.read IS NULL AND q.dispatch = :dispatch AND q.asks AND q.sender = r.recipient
AND r.sender = q.answerer AND r.text = q.answer ORDER BY q.id

-- name: answers_for
-- What a dispatch has asked and was told since its last run began, or has not read yet.
SELECT m.* FROM messages m WHERE m.dispatch = :dispatch AND m.asks AND m.answered IS NOT NULL
AND (m.answered >= (SELECT created FROM runs WHERE dispatch = :dispatch ORDER BY id DESC LIMIT 1)
     OR EXISTS (SELECT 1 FROM messages r WHERE r.reply_to = m.id AND r.read IS NULL AND r.sender = m.answerer AND r.text = m.answer))
ORDER BY m.id

-- name: replies
-- The answer to a question, as a message.
SELECT r.id FROM messages r JOIN messages q ON q.id = r.reply_to
WHERE r.reply_to = :id AND r.read IS NULL AND r.sender = q.answerer AND r.text = q.answer

-- name: put_words
-- What something remembered is found by.
INSERT INTO memory_words (rowid, words) VALUES (:id, :words)

-- name: drop_words
-- It is not found any more.
DELETE FROM memory_words WHERE rowid = :id

-- name: clear_words
-- What was dropped leaves the index for good.
INSERT INTO memory_words (memory_words) VALUES ('optimize')

-- name: recall
-- What has any of these words, the best first.
SELECT m.*, w.rank FROM (SELECT rowid, rank FROM memory_words WHERE memory_words MATCH :query ORDER BY rank LIMIT :limit) w
JOIN memory m ON m.id = w.rowid ORDER BY w.rank

-- name: recall_of
-- The same of one agent, or of some sources.
SELECT m.*, w.rank FROM memory_words w JOIN memory m ON m.id = w.rowid WHERE memory_words MATCH :query
AND (:agent IS NULL OR m.agent = :agent) AND instr(:sources, '|' || m.source || '|') ORDER BY w.rank LIMIT :limit

-- name: memory
-- One thing that is remembered.
SELECT * FROM memory WHERE id = :id

-- name: memory_ids
-- All that is remembered and can be searched for.
SELECT id FROM memory WHERE source <> 'todo' ORDER BY id

-- name: memory_after
-- What came to be remembered after something, oldest first.
SELECT id, text FROM memory WHERE id > :after AND source <> 'todo' ORDER BY id LIMIT :limit

-- name: same_memory
-- What an agent remembers in these very words, of this moment.
SELECT id FROM memory WHERE agent = :agent AND source = :source AND text = :text AND abs(time - :time) < 1 LIMIT 1

-- name: drop_memory
-- It is not remembered any more.
DELETE FROM memory WHERE id = :id

-- name: drop_note
-- It stands in no file, and never did.
DELETE FROM notes WHERE id = :id

-- name: forget_note
-- An entry that no copy may bring back.
INSERT OR IGNORE INTO forgotten (id) VALUES (:id)

-- name: forgotten
-- Which of these were forgotten.
SELECT id FROM forgotten WHERE id IN (SELECT value FROM json_each(:ids))

-- name: forget_message
-- What it said is nobody's to know any more.
UPDATE messages SET text = '(forgotten)', subject = NULL, read = ifnull(read, :now) WHERE id = :id

-- name: forget_answer
-- The same of an answer.
UPDATE messages SET answer = '(forgotten)', read = ifnull(read, :now) WHERE id = :id

-- name: answers_as_messages
-- An answer, as whoever asked was told of it.
SELECT id FROM messages WHERE reply_to = :id AND text = :text

-- name: events_that_say
-- Events that may hold a text that is to be forgotten.
SELECT id, detail FROM events WHERE kind IN ('request.received', 'message.received', 'question.asked', 'question.answered', 'pr.opened')
AND instr(detail, :text)
AND (:agent IS NULL OR (run IN (SELECT id FROM runs WHERE agent = :agent) AND json_extract(detail, '$.verb') = 'note'))

-- name: actions_that_say
-- What was done of such requests.
SELECT a.id, a.payload FROM actions a JOIN events e ON e.id = a.event
WHERE a.type IN ('Note', 'Message', 'Ask', 'Answer', 'OpenPr') AND instr(a.payload, :text)
AND (:agent IS NULL OR (a.type = 'Note' AND e.run IN (SELECT id FROM runs WHERE agent = :agent)))

-- name: change_action
-- It says less.
UPDATE actions SET payload = :payload WHERE id = :id

-- name: change_event
-- It says less.
UPDATE events SET detail = :detail WHERE id = :id

-- name: messages_unread
-- What a run's prompt held comes again.
UPDATE messages SET read = NULL WHERE shown = :run AND answered IS NULL AND closed IS NULL
