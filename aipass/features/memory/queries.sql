-- Memory: state files, notes, and the search in them. A line with `name:` begins a statement; the next line says its purpose.

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
