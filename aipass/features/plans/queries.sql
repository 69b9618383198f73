-- Plans and their phases. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_plan
-- Start a plan.
INSERT INTO plans (id, title, file, state, body, started, hops)
VALUES (:id, :title, :file, 'running', :body, :now, :hops)

-- name: insert_phase
-- Add a phase to a plan.
INSERT INTO phases (plan, id, place, agent, state) VALUES (:plan, :id, :place, :agent, 'waiting')

-- name: drop_plan
-- Remove an ended plan before it starts again.
DELETE FROM plans WHERE id = :id

-- name: drop_phases
-- Remove all phases of a plan.
DELETE FROM phases WHERE plan = :id

-- name: plan
-- One plan.
SELECT * FROM plans WHERE id = :id

-- name: all_plans
-- Every plan that was ever started.
SELECT * FROM plans ORDER BY id

-- name: open_plans
-- Running and paused plans.
SELECT * FROM plans WHERE state IN ('running', 'paused') ORDER BY id

-- name: phases_of
-- The phases of a plan in its order, each with its dispatch's state, its live run and its newest run.
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
-- Set the state of a plan; an end records the time.
UPDATE plans SET state = :state, reason = :reason,
    finished = CASE WHEN :state IN ('done', 'failed', 'stopped') THEN :now ELSE NULL END
WHERE id = :id

-- name: plan_hops
-- Set the chain length (hops) of a plan that a longer chain of agents resumes.
UPDATE plans SET hops = :hops WHERE id = :id

-- name: phase_state
-- Set the state of a phase; one that begins again loses its dispatch and its handoff.
UPDATE phases SET state = :state, reason = :reason,
    began = CASE WHEN :state = 'running' THEN :now ELSE began END,
    handoff = CASE WHEN :state IN ('ready', 'waiting') THEN NULL ELSE handoff END,
    dispatch = CASE WHEN :state IN ('ready', 'waiting') THEN NULL ELSE dispatch END,
    finished = CASE WHEN :state IN ('done', 'failed', 'stopped') THEN :now ELSE NULL END
WHERE plan = :plan AND id = :id

-- name: phase_dispatch
-- Link a phase to its dispatch.
UPDATE phases SET dispatch = :dispatch WHERE plan = :plan AND id = :id

-- name: dispatch_phase
-- Link a dispatch to its phase.
UPDATE dispatches SET plan = :plan, phase = :phase WHERE id = :dispatch

-- name: phase_handoff
-- Set how a phase hands over; `aipass deliver` sets it to write.
UPDATE phases SET handoff = :handoff WHERE plan = :plan AND id = :id

-- name: phase_reason
-- Set the reason that `plan status` shows for a phase, without a change of state.
UPDATE phases SET reason = :reason WHERE plan = :plan AND id = :id

-- name: last_check
-- The result of a phase's last checks.
SELECT * FROM events WHERE kind = 'check.finished' AND ref = :ref AND time >= :since ORDER BY id DESC LIMIT 1

-- name: add_written
-- Record that a phase's run wrote a deliverable.
INSERT OR IGNORE INTO written (plan, phase, path) VALUES (:plan, :phase, :path)

-- name: written_of
-- The deliverables that a phase's runs wrote.
SELECT path FROM written WHERE plan = :plan AND phase = :phase ORDER BY path

-- name: drop_written
-- Forget the deliverables of a phase, or with phase NULL of a whole plan, before it begins again.
DELETE FROM written WHERE plan = :plan AND phase = ifnull(:phase, phase)

-- name: phase_checking
-- Record the running check of a phase, or with checking NULL that it has ended.
UPDATE phases SET checking = :checking, seal = :seal WHERE plan = :plan AND id = :id

-- name: checks
-- The phases with a running check.
SELECT p.* FROM phases p WHERE checking IS NOT NULL

-- name: handed_over
-- Ended phases whose run is still alive after the hand-over.
SELECT p.*, r.id AS run FROM phases p JOIN runs r ON r.dispatch = p.dispatch
WHERE r.state <> 'ended' AND p.state NOT IN ('ready', 'running', 'delivered')

-- name: asked_by
-- The event that caused an action.
SELECT e.* FROM events e JOIN actions a ON a.event = e.id WHERE a.id = :action

-- name: phase_of_dispatch
-- The phase of a dispatch.
SELECT * FROM phases WHERE dispatch = :dispatch

-- name: plan_body
-- Replace a plan with its changed file.
UPDATE plans SET title = :title, file = :file, body = :body WHERE id = :id

-- name: phase_place
-- Change the place and the agent of a phase that has not begun.
UPDATE phases SET place = :place, agent = :agent WHERE plan = :plan AND id = :id

-- name: drop_phase
-- Remove a phase that has not begun.
DELETE FROM phases WHERE plan = :plan AND id = :id

-- name: phase_opening
-- Record that a phase's PR is being opened, or with opening NULL that this has ended.
UPDATE phases SET opening = :opening, seal = :seal WHERE plan = :plan AND id = :id

-- name: phase_pr
-- Record the number of a phase's PR.
UPDATE phases SET pr = :pr WHERE plan = :plan AND id = :id
