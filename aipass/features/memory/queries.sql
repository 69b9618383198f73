-- The memory feature: state files, notes, and their search. A line with `name:` begins a statement; the next line says its purpose.

-- name: insert_memory
-- Adds a memory.
INSERT INTO memory (source, agent, text, tags, path, dispatch, run, time, detail)
VALUES (:source, :agent, :text, :tags, :path, :dispatch, :run, :time, :detail)

-- name: put_note
-- Adds an entry of a state file.
INSERT INTO notes (id, agent, source, place, since, changed, earlier) VALUES (:id, :agent, :source, :place, :stamp, :stamp, '[]')

-- name: known_notes
-- Entries that are in a file, and those that were removed after a copy of it was made.
SELECT n.*, m.text, m.tags FROM notes n JOIN memory m ON m.id = n.id
WHERE n.agent = :agent AND n.source = :source AND (n.gone IS NULL OR n.gone > :base) ORDER BY n.place, n.id

-- name: open_notes
-- Entries that are in an agent's files, in their order.
SELECT n.id, n.source, n.place, m.text, m.tags, m.time FROM notes n JOIN memory m ON m.id = n.id
WHERE n.agent = :agent AND n.gone IS NULL ORDER BY n.place, n.id

-- name: note
-- One entry.
SELECT n.*, m.text FROM notes n JOIN memory m ON m.id = n.id WHERE n.id = :id

-- name: note_gone
-- Marks an entry as removed from its file; it stays in memory.
UPDATE notes SET gone = :stamp WHERE id = :id AND gone IS NULL

-- name: note_place
-- Sets the position of an entry in its list.
UPDATE notes SET place = :place WHERE id = :id

-- name: note_changed
-- Records that the text of an entry changed, and its earlier texts.
UPDATE notes SET changed = :stamp, earlier = :earlier WHERE id = :id

-- name: change_memory
-- Replaces text and tags of a memory.
UPDATE memory SET text = :text, tags = :tags WHERE id = :id

-- name: state
-- The published content of a file.
SELECT * FROM states WHERE agent = :agent AND file = :file

-- name: states
-- The published content of all files.
SELECT agent, file, body FROM states

-- name: put_state
-- Sets the published content of a file.
INSERT INTO states (agent, file, updated, doing, body) VALUES (:agent, :file, :updated, :doing, :body)
ON CONFLICT (agent, file) DO UPDATE SET updated = excluded.updated, doing = excluded.doing, body = excluded.body

-- name: put_copy
-- Records a version of a file that an agent may have read.
INSERT OR REPLACE INTO copies (agent, file, updated, engine, doing) VALUES (:agent, :file, :updated, :engine, :doing)

-- name: copies
-- Versions of a file that an agent may have read, newest first.
SELECT updated, engine, doing FROM copies WHERE agent = :agent AND file = :file ORDER BY updated DESC

-- name: drop_copies
-- Deletes all versions but the newest.
DELETE FROM copies WHERE agent = :agent AND file = :file AND updated <= (SELECT updated FROM copies
WHERE agent = :agent AND file = :file ORDER BY updated DESC LIMIT 1 OFFSET :keep)

-- name: last_sessions
-- The last sessions of an agent, newest first.
SELECT * FROM memory WHERE agent = :agent AND source = 'session' AND run IS NOT NULL ORDER BY id DESC LIMIT :limit

-- name: session_of
-- The session of one run.
SELECT * FROM memory WHERE agent = :agent AND source = 'session' AND run = :run

-- name: check_of
-- The last result of a run's checks.
SELECT detail FROM events WHERE kind = 'check.finished' AND run = :run ORDER BY id DESC LIMIT 1

-- name: put_words
-- Adds the indexed words of a memory.
INSERT INTO memory_words (rowid, words) VALUES (:id, :words)

-- name: drop_words
-- Removes a memory from the search index.
DELETE FROM memory_words WHERE rowid = :id

-- name: clear_words
-- Merges the index, so that removed words leave the database file.
INSERT INTO memory_words (memory_words) VALUES ('optimize')

-- name: recall
-- Memories that match a query, best first.
SELECT m.*, w.rank FROM (SELECT rowid, rank FROM memory_words WHERE memory_words MATCH :query ORDER BY rank LIMIT :limit) w
JOIN memory m ON m.id = w.rowid ORDER BY w.rank

-- name: recall_of
-- The same for one agent, or for some sources.
SELECT m.*, w.rank FROM memory_words w JOIN memory m ON m.id = w.rowid WHERE memory_words MATCH :query
AND (:agent IS NULL OR m.agent = :agent) AND instr(:sources, '|' || m.source || '|') ORDER BY w.rank LIMIT :limit

-- name: memory
-- One memory.
SELECT * FROM memory WHERE id = :id

-- name: memory_ids
-- The ids of all memories that can be searched for.
SELECT id FROM memory WHERE source <> 'todo' ORDER BY id

-- name: memory_after
-- Memories after an id, oldest first.
SELECT id, text FROM memory WHERE id > :after AND source <> 'todo' ORDER BY id LIMIT :limit

-- name: same_memory
-- A memory of an agent with the same text and time.
SELECT id FROM memory WHERE agent = :agent AND source = :source AND text = :text AND abs(time - :time) < 1 LIMIT 1

-- name: drop_memory
-- Deletes a memory.
DELETE FROM memory WHERE id = :id

-- name: drop_note
-- Deletes an entry without a trace.
DELETE FROM notes WHERE id = :id

-- name: forget_note
-- Records an entry that a stale copy must not bring back.
INSERT OR IGNORE INTO forgotten (id) VALUES (:id)

-- name: forgotten
-- Forgotten ids among the given ones.
SELECT id FROM forgotten WHERE id IN (SELECT value FROM json_each(:ids))

-- name: forget_message
-- Blanks a message.
UPDATE messages SET text = '(forgotten)', subject = NULL, read = ifnull(read, :now) WHERE id = :id

-- name: forget_answer
-- Blanks the answer of a question.
UPDATE messages SET answer = '(forgotten)', read = ifnull(read, :now) WHERE id = :id

-- name: answers_as_messages
-- The messages that delivered an answer to its asker.
SELECT id FROM messages WHERE reply_to = :id AND text = :text

-- name: events_that_say
-- Events that may contain a text to forget.
SELECT id, detail FROM events WHERE kind IN ('request.received', 'message.received', 'question.asked', 'question.answered', 'pr.opened')
AND instr(detail, :text)
AND (:agent IS NULL OR (run IN (SELECT id FROM runs WHERE agent = :agent) AND json_extract(detail, '$.verb') = 'note'))

-- name: actions_that_say
-- Actions that may contain a text to forget.
SELECT a.id, a.payload FROM actions a JOIN events e ON e.id = a.event
WHERE a.type IN ('Note', 'Message', 'Ask', 'Answer', 'OpenPr') AND instr(a.payload, :text)
AND (:agent IS NULL OR (a.type = 'Note' AND e.run IN (SELECT id FROM runs WHERE agent = :agent)))

-- name: change_action
-- Replaces the payload of an action.
UPDATE actions SET payload = :payload WHERE id = :id

-- name: change_event
-- Replaces the detail of an event.
UPDATE events SET detail = :detail WHERE id = :id
