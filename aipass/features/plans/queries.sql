-- Plans and their phases. A line with `name:` begins a statement; the next line says its purpose.

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

-- name: phase_opening
-- Its PR is being opened, or has been.
UPDATE phases SET opening = :opening, seal = :seal WHERE plan = :plan AND id = :id

-- name: phase_pr
-- Its PR.
UPDATE phases SET pr = :pr WHERE plan = :plan AND id = :id
