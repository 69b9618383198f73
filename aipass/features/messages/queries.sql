-- The messages feature: messages and questions. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_message
-- Adds a message or a question.
INSERT INTO messages (sender, recipient, subject, text, files, reply_to, dispatch, run, sent, asks, options, waits)
VALUES (:sender, :recipient, :subject, :text, :files, :reply_to, :dispatch, :run, :sent, :asks, :options, :waits)

-- name: message
-- One message.
SELECT * FROM messages WHERE id = :id

-- name: unread
-- Unread messages of a recipient, oldest first.
SELECT * FROM messages WHERE recipient = :recipient AND read IS NULL ORDER BY id LIMIT :limit

-- name: unread_ids
-- The ids of unread messages of a recipient.
SELECT id FROM messages WHERE recipient = :recipient AND read IS NULL

-- name: count_unread
-- The number of unread messages of a recipient.
SELECT count(*) AS number FROM messages WHERE recipient = :recipient AND read IS NULL

-- name: count_waiting
-- The same number, counted up to a limit.
SELECT count(*) AS number FROM (SELECT 1 FROM messages WHERE recipient = :recipient AND read IS NULL LIMIT :limit)

-- name: messages_of
-- Messages of a recipient, newest first.
SELECT * FROM messages WHERE recipient = :recipient ORDER BY id DESC LIMIT :limit

-- name: message_delivered
-- Records that a message was put into the mail folder of a run.
UPDATE messages SET delivered = :now WHERE id = :id AND delivered IS NULL

-- name: message_shown
-- Records that the prompt of a run shows a message.
UPDATE messages SET shown = :run WHERE id = :id

-- name: shown_messages
-- Messages that the prompt of a run shows.
SELECT * FROM messages WHERE shown = :run ORDER BY id

-- name: message_read
-- Marks a message as read by its recipient.
UPDATE messages SET read = :now, delivered = ifnull(delivered, :now) WHERE id = :id AND recipient = :recipient AND read IS NULL

-- name: questions
-- Open questions, or all, oldest first.
SELECT * FROM messages WHERE asks AND (:all OR (answered IS NULL AND closed IS NULL)) ORDER BY id

-- name: open_questions
-- Open questions of a dispatch.
SELECT * FROM messages WHERE dispatch = :dispatch AND asks AND answered IS NULL AND closed IS NULL ORDER BY id

-- name: question_work
-- Sets the dispatch that must answer a question.
UPDATE messages SET work = :work WHERE id = :id

-- name: questions_of_work
-- Open questions that a dispatch must answer.
SELECT * FROM messages WHERE work = :work AND asks AND answered IS NULL AND closed IS NULL ORDER BY id

-- name: question_answered
-- Records the answer of an open question.
UPDATE messages SET answer = :answer, answered = :now, answerer = :by, read = ifnull(read, :now), delivered = ifnull(delivered, :now)
WHERE id = :id AND answered IS NULL AND closed IS NULL

-- name: question_closed
-- Closes an open question without an answer.
UPDATE messages SET closed = :reason, read = ifnull(read, :now), delivered = ifnull(delivered, :now)
WHERE id = :id AND answered IS NULL AND closed IS NULL

-- name: waits_of
-- What an agent's live run waits for with --wait: answers, and dispatches that it sent.
SELECT m.recipient, m.work FROM runs r JOIN messages m ON m.dispatch = r.dispatch AND m.run = r.id
WHERE r.agent = :agent AND r.state <> 'ended' AND m.asks AND m.answered IS NULL AND m.closed IS NULL AND m.waits > :now
UNION ALL
SELECT d.agent, d.id FROM runs r CROSS JOIN senders s INDEXED BY senders_waiter ON s.waiter = r.id CROSS JOIN dispatches d ON d.id = s.dispatch
WHERE r.agent = :agent AND r.state <> 'ended' AND s.waits > :now AND d.state IN ('queued', 'running', 'blocked')

-- name: unheard_answers
-- Answers that came while a run was live, and that it has not read.
SELECT q.id, r.id AS reply FROM messages r JOIN messages q ON q.id = r.reply_to
WHERE r.recipient = :agent AND r.read IS NULL AND q.dispatch = :dispatch AND q.asks AND q.sender = r.recipient
AND r.sender = q.answerer AND r.text = q.answer ORDER BY q.id

-- name: answers_for
-- Questions of a dispatch that were answered since its last run began, or whose answer is unread.
SELECT m.* FROM messages m WHERE m.dispatch = :dispatch AND m.asks AND m.answered IS NOT NULL
AND (m.answered >= (SELECT created FROM runs WHERE dispatch = :dispatch ORDER BY id DESC LIMIT 1)
     OR EXISTS (SELECT 1 FROM messages r WHERE r.reply_to = m.id AND r.read IS NULL AND r.sender = m.answerer AND r.text = m.answer))
ORDER BY m.id

-- name: replies
-- The unread message that delivers the answer to a question.
SELECT r.id FROM messages r JOIN messages q ON q.id = r.reply_to
WHERE r.reply_to = :id AND r.read IS NULL AND r.sender = q.answerer AND r.text = q.answer

-- name: messages_unread
-- Marks the messages of a run's prompt as unread again.
UPDATE messages SET read = NULL WHERE shown = :run AND answered IS NULL AND closed IS NULL
