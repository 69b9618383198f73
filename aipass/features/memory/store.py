"""The state store: the notes and sessions of every agent as rows of the ledger, and the content of its three state files.

Every method runs in the engine's thread, inside its transaction. `StateFiles` reads and writes the files on the disk.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from aipass.errors import EXIT_FAILED, EXIT_REFUSED
from aipass.event import Fact, iso, printable
from aipass.features.memory.document import render
from aipass.features.memory.full_text import indexed
from aipass.features.memory.merge import MergedNote, merge
from aipass.features.memory.model import (
    CUT,
    FILES,
    KEYS,
    LISTS,
    LOCAL,
    MAX_TAG,
    MAX_TAGS,
    NOTHING_ADDED,
    NOW,
    OBSERVATIONS,
    PASSPORT,
    SCHEMA,
    NoteEntry,
    printed,
)
from aipass.features.memory.sessions import with_checks
from aipass.text.units import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aipass.config.model import Config
    from aipass.core.registry import Core
    from aipass.core.step import Step
    from aipass.features.memory.indexer import Indexer
    from aipass.features.memory.state_files import StateFiles, StateRejected, StateSaved
    from aipass.ledger import Row

#: The newest versions of a file that are known: an agent may save a copy that it read long ago, and it must be merged with that.
KEPT_COPIES = 100
#: The longest text of `now.task`: the file is read as a whole by a model, and a task may have megabytes.
TASK_CHARS = 200
#: The fields that only the engine writes, by file. `updated` is not checked: models often write a new time there.
ENGINES = {
    LOCAL: ("schema", "agent", *(f"now.{name}" for name in NOW if name != "doing"), "sessions"),
    OBSERVATIONS: ("schema", "agent"),
}
FILE_OF = {"todo": LOCAL, "learning": LOCAL, "observation": OBSERVATIONS}
#: `forget` replaces a text in these fields of events and actions. Events hold only the beginning of a long message (200
#: characters), so a value of CUT_CHARS or more also matches as a beginning.
SAID, CUT_CHARS = frozenset(("text", "subject", "answer", "title", "body")), 190
# JSON writes these characters as they are, so SQL can search for them. Others may be escaped in the stored text.
_SIMPLE = re.compile(r"[A-Za-z0-9 .,;:_-]{1,60}")
FORGOTTEN = "(forgotten)"
#: The earlier texts of an entry that are kept: a stale copy that still has one of them is no new change.
KEPT_TEXTS = 20
#: The longest text in memory, in characters.
MAX_REMEMBERED = 20_000
#: The detail of an imported session: it belongs to no run of this ledger.
_OLD_SESSION = {"imported": True}
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class StateStore:
    """What each agent knows: reads and writes its rows, and computes its files.

    `files` is None where the engine runs without threads (tests): then rows change and no file is written.
    """

    def __init__(
        self,
        core: Core,
        files: StateFiles | None,
        mask: Callable[[str], tuple[str, list[str]]],
        indexer: Indexer | None = None,
    ) -> None:
        self._core, self._ledger, self._files, self._mask = core, core.ledger, files, mask
        self._indexer = indexer
        #: Removes the files of a forgotten message, by its id and its recipient; set by the messages feature.
        self.forgets_message: Callable[[int, str], None] | None = None
        self._moment = 0
        #: Ids that indexes must read again, and whether there are new ids for them.
        self._changed: list[int] = []
        self._is_news = False
        #: FTS5 keeps the words of a deleted row in its segments until an `optimize`, so forgotten text could still be read there.
        self._is_forgetting = False
        self._stamps: dict[tuple[str, str], int] = {}
        self._dirty: dict[tuple[str, str], bool] = {}

    @property
    def _config(self) -> Config:
        return self._core.config()

    def at(self, wall: float) -> None:
        """Begin a step at the time `wall`, in seconds, and drop what a failed transaction left in this object."""
        self._moment = round(wall * 1000)
        self._stamps.clear()
        self._dirty.clear()
        self._changed.clear()
        self._is_news = self._is_forgetting = False

    # -- the agents and their files --------------------------------------------------------------------------------

    def serve(self, step: Step) -> None:
        """Publish all files of every configured agent, as aipass.toml and the rows say. Idempotent."""
        for agent in self._config.agents:
            for file in FILES:
                self._touch(agent, file)
        if self._files is not None:
            homes = {agent: self._config.home(agent) for agent in self._config.agents}
            known = {(row["agent"], row["file"]): bytes(row["body"]) for row in self._ledger.all("states")}
            step.effects.append(partial(self._files.serve, homes, self._config.state, known))

    def begun(self, agent: str) -> None:
        """A run of `agent` is about to start: update `now`, and clear `doing` where it belongs to another dispatch."""
        if agent not in self._config.agents:
            return
        self._touch(agent, LOCAL)
        row, work = self._state(agent, LOCAL), self._ledger.one("work_now", {"agent": agent})
        if row is None or row["doing"] is None or work is None:
            return
        # `doing` survives a retry of the same dispatch: the next attempt continues that work.
        last = self._ledger.one("last_sessions", {"agent": agent, "limit": 1})
        before = json.loads(row["body"])["now"]["dispatch"] or (
            last["dispatch"] if last is not None else None
        )
        if before != work["dispatch"]:
            self._doing(agent, None, row)

    def ended(self, step: Step, run: Row, session: dict[str, Any]) -> None:
        """Store an ended run as a session in memory. `session` is what `sessions.of` returned."""
        detail = {name: session[name] for name in ("started", "finished", "outcome", "files", "summary")}
        detail["summary"] = self.clean(session["summary"])
        text = with_checks(detail["summary"], self._check_of(run["id"]))
        self.remember("session", run["agent"], text, step.now.wall, run=run, detail=detail)
        if run["agent"] in self._config.agents:
            self._touch(run["agent"], LOCAL)

    def checked(self, agent: str, run: int) -> None:
        """Add the result of a run's checks to its session. Does nothing while the run has no session yet."""
        # `ended` reads the result itself, so either order of run end and check end gives the same text.
        row = self._ledger.one("session_of", {"agent": agent, "run": run})
        if row is None:
            return
        text = with_checks(json.loads(row["detail"])["summary"], self._check_of(run))
        self._ledger.run("change_memory", {"id": row["id"], "text": text, "tags": row["tags"]})
        self._ledger.run("drop_words", {"id": row["id"]})
        self._ledger.run("put_words", {"id": row["id"], "words": indexed(text)})
        self._changed.append(row["id"])
        if agent in self._config.agents:
            self._touch(agent, LOCAL)

    def _check_of(self, run: int) -> dict[str, Any] | None:
        # The event of this step may still be in the ledger's buffer, and the statement reads events.
        self._ledger.flush()
        row = self._ledger.one("check_of", {"run": run})
        return None if row is None else json.loads(row["detail"])

    # -- what is noted ---------------------------------------------------------------------------------------------

    def note(
        self,
        step: Step,
        agent: str,
        kind: str,
        text: str,
        tags: Sequence[str],
        run: Row | None,
        added: float | None = None,
    ) -> tuple[str, bool]:
        """Add an entry to an agent's file. Returns a message for the asker, and whether the note failed.

        A text over the limit is cut, and the message says so. `added`: the time of an imported entry, in seconds;
        an entry with the same text and time is not added again (deduplication).
        """
        limit = self._config.state.text
        text = printed(text).strip()
        tags = [printed(tag).strip()[:MAX_TAG] for tag in tags if tag.strip()][:MAX_TAGS]
        # A session is in memory only, so the limit of the state files does not apply to it.
        if added is not None and kind == "session":
            limit = MAX_REMEMBERED
        kept = text[:limit]
        cut = f"{CUT} {limit} of {len(text)} characters fit ([state] text)" if text != kept else ""
        if added is not None:
            known = {"agent": agent, "source": kind, "text": self.clean(kept), "time": added}
            if (row := self._ledger.one("same_memory", known)) is not None:
                return f"{kind} {row['id']} of {agent} has the same text already{NOTHING_ADDED}", False
            if kind == "session":
                number = self.remember(kind, agent, kept, added, tags=tags, detail=_OLD_SESSION)
                return f"session {number} of {agent} is remembered{cut}", False
        if kind == "doing":
            self._doing(agent, kept, self._state(agent, LOCAL))
            return f"{agent} is doing that{cut}", False
        if kind == "todo" and len(self._open(agent, kind)) >= self._config.state.todos:
            todos = self._config.state.todos
            return (
                f"{agent} has {count(todos, 'open todo')}, and no more fit ([state] todos); finish one: `aipass note done ID`",
                True,
            )
        number = self._add(step, agent, kind, kept, tags, len(self._open(agent, kind)), run, added)
        self._roll_over(agent, kind)
        return f"{kind} {number} of {agent} is noted{cut}", False

    def done(self, step: Step, agent: str, number: int) -> tuple[str, bool]:
        """Finish a todo of an agent. Returns a message, and whether it failed; a todo that is done already is no failure."""
        del step
        row = self._ledger.one("note", {"id": number})
        if row is None or row["agent"] != agent or row["source"] != "todo":
            return (
                f"{agent} has no todo {number}; `aipass trinity show {agent}` shows those that it has",
                True,
            )
        if row["gone"] is not None:
            return f"todo {number} is done already", False
        self._gone(agent, "todo", number)
        return f"todo {number} of {agent} is done", False

    # -- memory ----------------------------------------------------------------------------------------------------

    def clean(self, text: str) -> str:
        """Return a text with everything masked that looks like a secret."""
        return self._mask(text)[0]

    def remember(
        self,
        source: str,
        agent: str,
        text: str,
        when: float,
        *,
        tags: Iterable[str] = (),
        run: Row | None = None,
        dispatch: int | None = None,
        path: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> int:
        """Store a text in memory and in the search index; returns its id. Secrets are masked, and a long text is cut.

        `when`: seconds. `run`: the run that said it; its dispatch is stored as well. Todos are not searched for.
        """
        text, tags = self.clean(text[:MAX_REMEMBERED]), list(map(self.clean, tags))
        about = {
            "source": source,
            "agent": agent,
            "text": text,
            "tags": json.dumps(tags),
            "path": path,
            "time": when,
        }
        about |= {"dispatch": dispatch, "run": None, "detail": json.dumps(detail or {})}
        if run is not None:
            about |= {
                "dispatch": run["dispatch"],
                # Callers pass rows of `runs` (id) and of `work_now` (run).
                "run": run["run"] if "run" in run.keys() else run["id"],  # noqa: SIM118 - a Row
            }
        number = self._ledger.run("insert_memory", about)
        self._is_news = True
        if source != "todo":
            self._ledger.run(
                "put_words", {"id": number, "words": indexed(text, *tags, printable(path) or "")}
            )
        return number

    def forget(self, step: Step, number: int, agent: str | None) -> tuple[int, str]:
        """Delete one memory from the state file, memory, index, mail and event log. Returns an exit code and a message.

        `agent` asks and can forget only its own; None is a person. Everything happens in one transaction; files go after it.
        """
        row = self._ledger.one("memory", {"id": number})
        if row is None:
            return EXIT_FAILED, f"nothing is remembered as {number}; `aipass recall` shows ids"
        if agent is not None and row["agent"] != agent:
            return EXIT_REFUSED, f"{number} belongs to {row['agent']}, and `{agent}` can forget only its own"
        detail = json.loads(row["detail"])
        said = detail.get("message") or detail.get("question")
        if agent is not None and said is not None:
            return EXIT_REFUSED, f"{number} was sent to others; only a person can forget it"
        texts = [row["text"]]
        if (note := self._ledger.one("note", {"id": number})) is not None:
            texts += json.loads(note["earlier"])
            if note["gone"] is None:
                self._touch(row["agent"], FILE_OF[row["source"]])
            self._ledger.run("drop_note", {"id": number})
            # A stale copy that an agent saves later must not bring the entry back.
            self._ledger.run("forget_note", {"id": number})
        if row["source"] == "session":
            self._touch(row["agent"], LOCAL)
        if row["source"] == "pr":
            # The text of a PR is composed; `pr.opened` and the action have its title alone.
            texts.append(row["text"].partition("\n")[0].partition(": ")[2])
        if said is not None:
            texts += self._forget_message(step, said, only_answer="question" in detail)
        self._ledger.run("drop_memory", {"id": number})
        self._changed.append(number)
        self._ledger.run("drop_words", {"id": number})
        self._is_forgetting = True
        # What this step has recorded must be in the tables before they are searched.
        self._ledger.flush()
        self._scrub({text.strip() for text in texts} - {""}, agent)
        stays = "; the pull request keeps its title" if row["source"] == "pr" else ""
        return 0, f"{row['source']} {number} of {row['agent']} is forgotten{stays}"

    def _forget_message(self, step: Step, number: int, *, only_answer: bool) -> list[str]:
        """Blank a message, or only its answer, and every message that delivered the answer. Returns the blanked texts."""
        row = self._ledger.one("message", {"id": number})
        if row is None:
            return []
        about = {"id": number, "now": step.now.wall}
        self._ledger.run("forget_answer" if only_answer else "forget_message", about)
        if only_answer:
            for reply in self._ledger.all("answers_as_messages", {"id": number, "text": row["answer"]}):
                self._forget_message(step, reply["id"], only_answer=False)
        elif self.forgets_message is not None:
            step.effects.append(partial(self.forgets_message, number, row["recipient"]))
        return [row["answer"] or ""] if only_answer else [row["text"], row["subject"] or ""]

    def _scrub(self, texts: set[str], agent: str | None) -> None:
        """Replace texts in recorded events and actions. The record that something was said stays.

        `agent` asks: then only notes of its own runs change, because a message belongs to its recipient as well.
        """
        # One pass over the log for all texts: each pass reads the whole log. SQL only preselects rows, `_without_any` decides.
        begin = _SIMPLE.match(next(iter(texts))) if len(texts) == 1 else None
        about = {"text": begin[0] if begin else "", "agent": agent}
        for event in self._ledger.all("events_that_say", about):
            if (detail := _without_any(event["detail"], texts)) is not None:
                self._ledger.run("change_event", {"id": event["id"], "detail": detail})
        for done in self._ledger.all("actions_that_say", about):
            if (payload := _without_any(done["payload"], texts)) is not None:
                self._ledger.run("change_action", {"id": done["id"], "payload": payload})

    # -- what agents save ------------------------------------------------------------------------------------------

    def take(self, step: Step, item: StateSaved) -> list[str]:
        """Merge a saved file into the rows. Returns messages for the agent, one for each kind of correction.

        Records `state.saved` and `state.rejected` events. The file is always published again, with ids and times.
        """
        agent, file, saved = item.agent, item.file, item.saved
        if agent not in self._config.agents:
            return []
        row = self._state(agent, file)
        copies = self._ledger.all("copies", {"agent": agent, "file": file})
        base, begun = _base(saved.found.get("updated"), copies)
        run = self._ledger.one("work_now", {"agent": agent})
        counts = {"added": 0, "changed": 0, "removed": 0}
        for kind, entries in saved.lists.items():
            counted = self._merge(step, agent, kind, entries, base, run, removes=begun is not None)
            for name, number in counted.items():
                counts[name] += number
        # An unchanged `doing` in a stale copy must not overwrite a newer one.
        if file == LOCAL and (begun is None or saved.doing != begun["doing"]) and row is not None:
            self._doing(agent, saved.doing, row)
        # Files of an earlier ledger differ from every copy of this one, and no agent forged them: a ledger with one copy is new.
        forged = _forged(file, saved.found, copies) if begun is not None or len(copies) > 1 else []
        # Even if no row changed: the file on the disk may have forged fields, or another form than ours.
        self._touch(agent, file, anyway=True)
        self._tell(step, item, counts, forged, run)
        told = []
        if forged:
            told.append(
                f"In your {file} the fields {', '.join(f'`{name}`' for name in forged)} belong to aipass: it restored them, "
                f"and saved your changes to your own fields."
            )
        if item.masked:
            told.append(
                f"aipass masked what looks like a secret in your {file}: {', '.join(item.masked)}. Do not store secrets there."
            )
        return told

    def _tell(
        self, step: Step, item: StateSaved, counts: dict[str, int], forged: list[str], run: Row | None
    ) -> None:
        about: dict[str, Any] = {"agent": item.agent, "file": item.file}
        by = None if run is None else run["run"]
        path = self.path(item.agent, item.file)
        if any(counts.values()):
            step.facts.append(
                Fact("state.saved", "state", path=path, ref=item.agent, by=by, detail=about | counts)
            )
        if forged:
            detail = about | {
                "fields": forged,
                "reason": "only the engine writes these fields; it restored them",
                "kept": None,
            }
            step.facts.append(
                Fact("state.rejected", "state", path=path, ref=item.agent, by=by, detail=detail)
            )

    def rejected(self, step: Step, item: StateRejected) -> str:
        """Record `state.rejected` for a file that cannot be used. Returns a message for the agent."""
        run = self._ledger.one("work_now", {"agent": item.agent})
        by = None if run is None else run["run"]
        path = self.path(item.agent, item.file)
        where = f"line {item.line}" + (f", field `{item.field}`" if item.field else "")
        detail = {
            "agent": item.agent,
            "file": item.file,
            "line": item.line,
            "field": item.field or None,
            "reason": item.reason,
            "kept": item.kept,
        }
        step.facts.append(Fact("state.rejected", "state", path=path, ref=item.agent, by=by, detail=detail))
        kept = f"; what you wrote is kept in {item.kept}" if item.kept else ""
        return f"Your {printable(path)} could not be used: {where}: {item.reason}. The last good state was put back{kept}."

    def path(self, agent: str, file: str) -> str:
        """Return the path of a state file, relative to the root."""
        home = self._config.home(agent) if agent in self._config.agents else agent
        return f"{home}/.trinity/{file}".rstrip("/")

    def _merge(
        self,
        step: Step,
        agent: str,
        kind: str,
        entries: Sequence[NoteEntry],
        base: int,
        run: Row | None,
        *,
        removes: bool,
    ) -> dict[str, int]:
        ids = json.dumps([entry.id for entry in entries if entry.id is not None])
        # Forgotten entries have no row, so a stale copy would look like an agent that adds a new entry.
        forgotten = {row["id"] for row in self._ledger.all("forgotten", {"ids": ids})}
        entries = [entry for entry in entries if entry.id not in forgotten]
        about = {"agent": agent, "source": kind}
        rows = self._ledger.all("known_notes", about | {"base": base})
        known = {row["id"]: row for row in rows}
        done = merge(map(_note, rows), entries, base, removes=removes)
        stamp = self._touch(agent, FILE_OF[kind])
        for number, entry in done.changed:
            row = known[number]
            earlier = json.dumps([*json.loads(row["earlier"]), row["text"]][-KEPT_TEXTS:])
            self._ledger.run("note_changed", {"id": number, "stamp": stamp, "earlier": earlier})
            self._ledger.run(
                "change_memory", {"id": number, "text": entry.text, "tags": json.dumps(entry.tags)}
            )
            self._ledger.run("drop_words", {"id": number})
            self._changed.append(number)
            if kind != "todo":
                self._ledger.run("put_words", {"id": number, "words": indexed(entry.text, *entry.tags)})
        for number in done.removed:
            self._gone(agent, kind, number)
        added = 0
        for place, one in enumerate(done.order):
            if isinstance(one, NoteEntry):
                added += 1
                self._add(step, agent, kind, one.text, one.tags, place, run)
            elif known[one]["place"] != place:
                self._ledger.run("note_place", {"id": one, "place": place})
        self._roll_over(agent, kind)
        return {"added": added, "changed": len(done.changed), "removed": len(done.removed)}

    # -- rows ------------------------------------------------------------------------------------------------------

    def _open(self, agent: str, kind: str) -> list[Row]:
        return [row for row in self._ledger.all("open_notes", {"agent": agent}) if row["source"] == kind]

    def _add(
        self,
        step: Step,
        agent: str,
        kind: str,
        text: str,
        tags: Iterable[str],
        place: int,
        run: Row | None,
        added: float | None = None,
    ) -> int:
        when = step.now.wall if added is None else added
        number = self.remember(kind, agent, text, when, tags=tags, run=run)
        stamp = self._touch(agent, FILE_OF[kind])
        self._ledger.run(
            "put_note", {"id": number, "agent": agent, "source": kind, "place": place, "stamp": stamp}
        )
        return number

    def _gone(self, agent: str, kind: str, number: int) -> None:
        self._ledger.run("note_gone", {"id": number, "stamp": self._touch(agent, FILE_OF[kind])})

    def _roll_over(self, agent: str, kind: str) -> None:
        """Take the oldest entries over the limit out of the file; they stay in memory."""
        # A todo is work to do: it must not vanish from the file because newer ones came.
        if kind == "todo":
            return
        most: int = getattr(self._config.state, f"{kind}s")
        rows = sorted(self._open(agent, kind), key=lambda row: (row["time"], row["id"]))
        for row in rows[: max(0, len(rows) - most)]:
            self._gone(agent, kind, row["id"])

    def _doing(self, agent: str, doing: str | None, row: Row | None) -> None:
        stamp = self._touch(agent, LOCAL)
        body = b"" if row is None else row["body"]
        updated = stamp - 1 if row is None else row["updated"]
        self._ledger.run(
            "put_state", {"agent": agent, "file": LOCAL, "updated": updated, "doing": doing, "body": body}
        )

    # -- the content of the files ----------------------------------------------------------------------------------

    def _touch(self, agent: str, file: str, *, anyway: bool = False) -> int:
        """Mark a file for `publish`, and return its next `updated` in ms. `anyway`: publish it even if nothing changed."""
        key = agent, file
        self._dirty[key] = self._dirty.get(key, False) or anyway
        if key not in self._stamps:
            row = self._state(agent, file)
            # Strictly increasing, even if the clock is set back: `updated` identifies the copy that an agent read.
            self._stamps[key] = max(self._moment, row["updated"] + 1 if row is not None else 0)
        return self._stamps[key]

    def publish(self, step: Step) -> None:
        """Record the content of every marked file, and queue an effect that writes it after the commit.

        Also called between two saves of one step: the second save is merged with the result of the first.
        """
        if self._is_forgetting:
            self._ledger.run("clear_words")
        for (agent, file), anyway in self._dirty.items():
            if agent not in self._config.agents:
                continue  # aipass.toml removed the agent in this step
            row = self._state(agent, file)
            stamp = self._stamps[agent, file]
            document = self._document(agent, file, row, stamp)
            body = render(document)
            if row is not None and row["body"] and _same(json.loads(body), json.loads(row["body"])):
                body = bytes(row["body"])
                # A version with nothing new but its `updated` would push a real one out of the KEPT_COPIES.
                if not anyway:
                    continue
            else:
                doing = document["now"]["doing"] if file == LOCAL else None
                self._ledger.run(
                    "put_state",
                    {"agent": agent, "file": file, "updated": stamp, "doing": doing, "body": body},
                )
                if file != PASSPORT:
                    engine = json.dumps({name: _hash(_at(document, name)) for name in ENGINES[file]})
                    about = {"agent": agent, "file": file}
                    self._ledger.run("put_copy", about | {"updated": stamp, "engine": engine, "doing": doing})
                    self._ledger.run("drop_copies", about | {"keep": KEPT_COPIES})
            if self._files is not None:
                step.effects.append(partial(self._files.publish, agent, file, body))
        if self._indexer is not None:
            step.effects += [partial(self._indexer.changed, number) for number in self._changed]
            if self._is_news:
                step.effects.append(self._indexer.look)
        self._changed.clear()
        self._dirty.clear()
        self._stamps.clear()
        self._is_news = self._is_forgetting = False

    def _state(self, agent: str, file: str) -> Row | None:
        return self._ledger.one("state", {"agent": agent, "file": file})

    def _document(self, agent: str, file: str, row: Row | None, stamp: int) -> dict[str, Any]:
        values: dict[str, Any] = {"schema": SCHEMA, "agent": agent, "updated": iso(stamp / 1000)}
        if file == PASSPORT:
            settings = self._config.agents[agent]
            created = json.loads(row["body"])["created"] if row is not None else iso(stamp / 1000)
            owns = None if settings.owns is None else list(settings.owns)
            values |= {"role": settings.role, "purpose": settings.purpose, "driver": settings.driver}
            values |= {"model": settings.model, "owns": owns, "created": created}
        else:
            notes = self._ledger.all("open_notes", {"agent": agent})
            for key, kind in LISTS.items():
                values[key] = [_entry(note) for note in notes if note["source"] == kind]
        if file == LOCAL:
            work = self._ledger.one("work_now", {"agent": agent})
            values["now"] = _now(work, None if row is None else row["doing"])
            limit = {"agent": agent, "limit": self._config.state.sessions}
            values["sessions"] = [_session(one) for one in self._ledger.all("last_sessions", limit)]
        return {key: values[key] for key in KEYS[file]}


def _without_any(said: str, texts: set[str]) -> str | None:
    """Return the JSON with every text replaced; None where it has none of them."""
    before = after = json.loads(said)
    for text in texts:
        after = _without(after, text)
    return None if after == before else json.dumps(after, separators=(",", ":"))


def _without(detail: dict[str, Any], text: str) -> dict[str, Any]:
    """Replace `text` in the fields of an event or action, also where either of the two is a cut beginning of the other."""
    return {
        name: FORGOTTEN if name in SAID and isinstance(value, str) and _is_same(value, text) else value
        for name, value in detail.items()
    }


def _is_same(value: str, text: str) -> bool:
    value, text = printed(value).strip(), printed(text).strip()
    # An event holds the beginning of a message, a file the beginning of a long note.
    is_cut = len(value) >= CUT_CHARS and text.startswith(value)
    return value == text or is_cut or (len(text) >= CUT_CHARS and value.startswith(text))


def _note(row: Row) -> MergedNote:
    return MergedNote(
        row["id"],
        row["text"],
        tuple(json.loads(row["tags"])),
        row["since"],
        row["changed"],
        row["gone"],
        tuple(json.loads(row["earlier"])),
    )


def _entry(row: Row) -> dict[str, Any]:
    return {"id": row["id"], "text": row["text"], "added": iso(row["time"]), "tags": json.loads(row["tags"])}


def _session(row: Row) -> dict[str, Any]:
    detail = json.loads(row["detail"])
    return {
        "dispatch": row["dispatch"],
        "run": row["run"],
        "started": detail["started"],
        "finished": detail["finished"],
        "outcome": detail["outcome"],
        "summary": row["text"],
        "files": detail["files"],
    }


def _now(work: Row | None, doing: str | None) -> dict[str, Any]:
    now: dict[str, Any] = dict.fromkeys(NOW)
    if work is not None:
        task = " ".join((work["subject"] or work["task"] or "").split())[:TASK_CHARS] or None
        since = iso(work["created"])
        now |= {
            "dispatch": work["dispatch"],
            "plan": work["plan"],
            "phase": work["phase"],
            "task": task,
            "since": since,
        }
    return now | {"doing": doing}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two documents are equal but for `updated`."""
    return {**one, "updated": None} == {**other, "updated": None}


def _base(updated: object, copies: Sequence[Row]) -> tuple[int, Row | None]:
    """Return the copy that an agent edited: its `updated` in ms, and its row. Without a known copy: the newest `updated`, None."""
    if isinstance(updated, str) and _ISO.fullmatch(updated):
        try:
            asked = round(datetime.fromisoformat(updated).timestamp() * 1000)
        except ValueError:
            asked = -1  # the form is right and the date does not exist, such as 2026-02-31
        for row in copies:
            if row["updated"] == asked:
                return asked, row
    return (copies[0]["updated"] if copies else 0), None


def _at(document: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - JSON
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None  # type: ignore[assignment]
    return document


def _hash(value: object) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _forged(file: str, found: dict[str, Any], copies: Sequence[Row]) -> list[str]:
    """Return the engine's fields whose values are in none of its copies. A missing field is restored without a report."""
    known = [json.loads(row["engine"]) for row in copies]
    forged = []
    for name in ENGINES[file]:
        top, _, below = name.partition(".")
        if top not in found or (below and below not in (found[top] if isinstance(found[top], dict) else {})):
            continue
        value = _hash(_at(found, name))
        if all(engine.get(name) != value for engine in known):
            forged.append(name)
    return forged
