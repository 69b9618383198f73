-- Messages and questions. A line with `name:` begins a statement; the next line says its purpose.

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

-- name: messages_unread
-- What a run's prompt held comes again.
UPDATE messages SET read = NULL WHERE shown = :run AND answered IS NULL AND closed IS NULL
