"""Where the state files stand: a thread that looks at what agents save there, and puts in place what the engine says.

It tells what was saved and lets the engine merge; what cannot be used it sets aside, and puts the last good state back at
once. Nothing that an agent wrote is overwritten before it was read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.features.memory.document import FaultError, line_of, read
from aipass.features.memory.model import FILES, FOLDER, KEYS, PASSPORT, Saved, parse
from aipass.features.memory.safe_files import HALF, READ, Places, all_of, content, is_written, write_half
from aipass.files import exchange
from aipass.sources import inotify, writers
from aipass.sources.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aipass.config.model import State
    from aipass.workspace.layout import Layout

logger = structlog.get_logger("aipass")

#: Where the kernel tells nothing, files are looked at so often.
POLL_S = 1.0
#: A file that was replaced while somebody had it open for writing is read when it is closed; looked at so often, and so many of an agent.
CLOSE_LOOK_S, CLOSE_WAIT_S, MOST_REPLACED, MOST_REPLACED_OF_ALL = 0.02, 600.0, 20, 400
#: What cannot be used and is open for writing is judged when it is closed, or after so many seconds.
OPEN_WAIT_S = 10.0
#: A program that answers each of our writes with one of its own is not answered at once any more, after so many.
MOST_AT_ONCE = 20
#: A file is looked at so often within a moment, and then once in so many seconds: what is saved in between is on the way to
#: what is saved last.
LOOKS_AT_ONCE, LOOK_EVERY_S = 20, 2.0
#: So many are looked at that an engine which was killed had taken away and not read; of names like those in a folder that was moved, so
#: many: no engine left them there.
MOST_HALVES, MOST_MOVED_HALVES = 60, 5
MASK = inotify.MASK | inotify.IN_MOVE_SELF
_LEFT = inotify.IN_MOVE_SELF | inotify.IN_DELETE_SELF | inotify.IN_IGNORED

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StateSaved:
    """An agent saved one of its state files, and it can be used. `masked`: kinds of secrets that were taken out."""

    agent: str
    file: str
    saved: Saved
    masked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateRejected:
    """What stood in a state file's place cannot be used. `kept`: where it is now, relative to the root."""

    agent: str
    file: str
    line: int
    field: str
    reason: str
    kept: str | None


@dataclass(slots=True)
class _Replaced:
    """A file that somebody had open for writing when another took its place.

    It keeps a name, `half`, so that it outlives this engine. `known`: what was read of it already.
    """

    key: Key
    half: str
    handle: int
    until: float
    known: bytes | None = None


class StateFiles:
    """A source of what agents save. Everything but the engine's side happens in its own thread.

    `mask` takes out of a text what looks like a secret, and says what kinds those were.
    """

    name = "state"

    def __init__(self, layout: Layout, mask: Callable[[str], tuple[str, list[str]]]) -> None:
        self._mask = mask
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._worker = Worker(self.name, layout.crashes, self._round, self._patience)
        self._places = Places(layout)
        self._watches: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}
        #: Which folder is watched: another may come to stand in its place.
        self._standing: dict[str, tuple[int, int]] = {}
        self._bad: set[str] = set()
        self._seen: dict[Key, tuple[int, ...]] = {}
        self._limits: State | None = None
        #: What the engine said last, and what was told to it last.
        self._known: dict[Key, bytes] = {}
        self._told: dict[Key, bytes] = {}
        self._replaced: list[_Replaced] = []
        self._again: dict[Key, float] = {}
        #: How often a file may still be looked at at once, as of when; and those that wait for their time.
        self._looks: dict[Key, tuple[float, float]] = {}
        self._late: dict[Key, float] = {}
        #: Those that cannot be used while they are written, and since when.
        self._unfinished: dict[Key, float] = {}
        #: How often the same was put in place again, and when last.
        self._repeated: dict[Key, tuple[int, float]] = {}

    # -- the engine's side -----------------------------------------------------------------------------------------

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin to watch; nothing is looked at before `serve` says whose files there are."""
        self._tell = tell
        self._worker.start()
        self._worker.ask(lambda: self._mask("") and None)  # what it needs takes a while to load

    def stop(self) -> None:
        """End the thread; what it was asked for before is done."""
        self._worker.stop()
        for one in self._replaced:
            os.close(one.handle)  # it keeps its name, and the next engine looks at it

    def is_settled(self) -> bool:
        """Whether nothing waits here."""
        return self._worker.is_settled() and not self._late and not self._unfinished

    def serve(self, homes: Mapping[str, str], limits: State, known: Mapping[Key, bytes]) -> None:
        """Look after the files of these agents, by their homes; `known` is what is to stand in them."""
        self._worker.ask(lambda: self._serve(dict(homes), limits, dict(known)))

    def publish(self, agent: str, file: str, body: bytes) -> None:
        """Put a file in place."""
        self._worker.ask(lambda: self._publish((agent, file), body))

    # -- the thread ------------------------------------------------------------------------------------------------

    def _round(self, events: list[inotify.Raw]) -> None:
        self._take(events)
        now = time.monotonic()
        for key in [key for key, due in self._late.items() if due <= now]:
            self._worker.attempt(partial(self._look_in_time, key))
        for key in [key for key, begun in self._unfinished.items() if now - begun > OPEN_WAIT_S]:
            self._worker.attempt(partial(self._look, key))
            self._unfinished.pop(key, None)
        self._look_at_replaced()
        self._try_again()
        self._poll()

    def _patience(self) -> float | None:
        if self._replaced:
            return CLOSE_LOOK_S
        waits = self._again or self._late or self._unfinished or self._unwatched()
        return POLL_S if waits else None

    def _take(self, events: list[inotify.Raw]) -> None:
        """Look at whatever the kernel names, each file once."""
        touched: dict[Key, None] = {}
        left: dict[str, None] = {}
        for raw in events:
            if raw.mask & inotify.IN_Q_OVERFLOW:
                touched |= dict.fromkeys((agent, file) for agent in self._places.homes for file in FILES)
            agent = self._watches.get(raw.watch)
            if agent is None:
                continue
            if raw.mask & _LEFT:
                if raw.mask & inotify.IN_IGNORED:
                    del self._watches[raw.watch]
                if self._watch_of.get(agent) == raw.watch:
                    left[agent] = None
                continue
            file = os.fsdecode(raw.name)
            # A file that was only created is still empty; its close is what counts.
            if file in FILES and (raw.mask != inotify.IN_CREATE or not self._is_fresh(agent, file)):
                touched[agent, file] = None
        for agent in left:
            if self._may_look((agent, FOLDER)):
                self._worker.attempt(partial(self._furnish, agent))
        for key in touched:
            self._worker.attempt(partial(self._look_in_time, key))

    def _is_fresh(self, agent: str, file: str) -> bool:
        """A plain file of one name that somebody has just made, and will close."""
        try:
            found = os.lstat(self._places.path(agent) / file)
        except OSError:
            return True
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    # -- whose files there are -------------------------------------------------------------------------------------

    def _serve(self, homes: dict[str, str], limits: State, known: dict[Key, bytes]) -> None:
        for agent in self._places.homes.keys() - homes.keys() | {
            name for name, home in homes.items() if self._places.homes.get(name, home) != home
        }:
            self._unwatch(agent)
        self._places.homes, self._limits = homes, limits
        self._known |= known
        for waiting in (self._late, self._again, self._looks, self._unfinished):
            for key in [key for key in waiting if key[0] not in homes]:
                del waiting[key]
        for agent in homes:
            self._worker.attempt(partial(self._furnish, agent, MOST_HALVES))

    def _furnish(self, agent: str, halves: int = MOST_MOVED_HALVES) -> None:
        """Have the folder there and watched, and look at all that is in it."""
        self._unwatch(agent)
        try:
            with self._places.folder(agent) as folder:
                self._bad.discard(agent)
                if self._worker.inotify is not None:
                    try:
                        # By its descriptor: the path may lead elsewhere by now.
                        watch = self._worker.inotify.add(os.fsencode(f"/proc/self/fd/{folder}/."), MASK)
                        self._watches[watch] = agent
                        found = os.fstat(folder)
                        self._standing[agent] = found.st_dev, found.st_ino
                        self._watch_of[agent] = watch
                    except OSError as exc:
                        logger.warning("state files are polled", agent=agent, error=str(exc))
            if not self._is_in_place(agent):
                # Another took its place before it was watched; the kernel tells nothing of that.
                if self._may_look((agent, FOLDER)):
                    self._furnish(agent, halves)
                return
        except OSError as exc:
            self._unblock(agent, exc)
            return
        self._sweep(agent, halves)
        for file in FILES:
            self._look_in_time((agent, file))

    def _is_in_place(self, agent: str) -> bool:
        """Whether the folder that is watched is the one that stands there; True where none is watched. Raises OSError."""
        if agent not in self._watch_of:
            return True
        with self._places.folder(agent) as folder:
            found = os.fstat(folder)
        return self._standing[agent] == (found.st_dev, found.st_ino)

    def _sweep(self, agent: str, most: int) -> None:
        """What an engine that was killed had taken away from its place, and not read yet, is read now; at most so many."""
        ours = {one.half for one in self._replaced if one.key[0] == agent}
        with self._places.folder(agent) as folder:
            found = [
                (half, name)
                for name in os.listdir(folder)
                if (half := HALF.fullmatch(name)) and name not in ours
            ]
            for place, (half, name) in enumerate(found):
                key = agent, f"{half[1]}.json"
                if key[1] == PASSPORT or place >= most:
                    with suppress(OSError):  # a folder, which somebody else has made
                        os.unlink(name, dir_fd=folder)  # of it only we make any
                else:
                    with suppress(FileNotFoundError):
                        self._take_away(key, name, {self._known.get(key)}, folder)

    def _unblock(self, agent: str, why: OSError) -> None:
        """Have the folder opened again where something that is none stood in its way; raises `why` where it was anything else."""
        if why.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise why
        if self._may_look((agent, FOLDER)):
            self._clear(agent)

    def _clear(self, agent: str) -> None:
        """Something that is no folder stands in the place of `.trinity`, or on the way there."""
        try:
            with self._places.above(agent) as folder:
                kept = self._places.set_aside(agent, FOLDER, folder)
        except OSError as exc:
            reason = f"its home {self._places.homes[agent]} is no folder, or leads through a symbolic link ({exc.strerror})"
            if agent not in self._bad:
                self._bad.add(agent)
                self._tell([StateRejected(agent, "", 1, "", reason, None)])
            return
        self._bad.discard(agent)
        reason = f"{FOLDER} must be a folder"
        self._furnish(agent)
        self._tell([StateRejected(agent, "", 1, "", reason, kept)])

    def _unwatch(self, agent: str) -> None:
        watch = self._watch_of.pop(agent, None)
        if watch is not None and self._worker.inotify is not None:
            self._watches.pop(watch, None)
            self._worker.inotify.remove(watch)

    def _unwatched(self) -> list[str]:
        return [agent for agent in self._places.homes if agent not in self._watch_of]

    def _poll(self) -> None:
        for agent in self._unwatched():
            for file in FILES:
                mark = self._mark(agent, file)
                if self._seen.get((agent, file)) != mark:
                    self._worker.attempt(partial(self._look, (agent, file)))
                    self._seen[agent, file] = self._mark(agent, file)

    def _mark(self, agent: str, file: str) -> tuple[int, ...]:
        """What changes with a file, and with what stands in its folder's place."""
        mark: tuple[int, ...] = ()
        with suppress(OSError):
            place = self._places.path(agent)
            folder = os.lstat(place)
            mark = folder.st_ino, stat.S_IFMT(folder.st_mode)
            found = os.lstat(place / file)
            mark += found.st_ino, found.st_size, found.st_mtime_ns
        return mark

    # -- what was saved --------------------------------------------------------------------------------------------

    def _look_in_time(self, key: Key) -> None:
        if key[1] == FOLDER:
            self._late.pop(key, None)
            self._furnish(key[0])
        elif self._may_look(key):
            self._look(key)

    def _may_look(self, key: Key) -> bool:
        """Whether what stands there may be looked at now; else it will be, as soon as it may."""
        now = time.monotonic()
        left, then = self._looks.get(key, (float(LOOKS_AT_ONCE), now))
        left = min(float(LOOKS_AT_ONCE), left + (now - then) / LOOK_EVERY_S)
        if left < 1:
            self._late[key] = now + (1 - left) * LOOK_EVERY_S
            return False
        self._looks[key] = left - 1, now
        self._late.pop(key, None)
        return True

    def _look(self, key: Key) -> None:
        """Find out what stands in a file's place, and do with it what is to be done."""
        agent, file = key
        if agent not in self._places.homes:
            return
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(self._places.folder(agent))
            except OSError as exc:
                self._unblock(agent, exc)
                return
            try:
                data = content(file, folder)
            except FileNotFoundError:
                self._unfinished.pop(key, None)
                self._restore(key, folder)
                return
            except FaultError as fault:
                self._reject(key, fault, folder)
                return
            self._judge(key, data, folder)

    def _judge(self, key: Key, data: bytes, folder: int | None) -> None:
        """`folder`: where it stands; None where another file is in its place already."""
        try:
            self._accept(key, data)
        except FaultError as fault:
            if folder is None:
                self._keep(key, data, fault)
            else:
                self._reject(key, fault, folder, data)
        else:
            if folder is not None:
                self._unfinished.pop(key, None)

    def _accept(self, key: Key, data: bytes) -> None:
        """Tell what was saved, where it is news. Raises FaultError where it cannot be used."""
        agent, file = key
        if data in {self._known.get(key), self._told.get(key)}:
            return
        if file == PASSPORT and key not in self._known:
            self._told[key] = data  # of an earlier ledger; ours takes its place
            return
        if file == PASSPORT:
            raise _of_passport(data, self._known.get(key, b"{}"))
        assert self._limits is not None
        known = self._known.get(key, b"")
        found = parse(file, data, self._limits, known)
        if known and found.found == json.loads(known):
            self._told[key] = data  # in another form: a formatter may have its way until something changes
            return
        saved, masked = self._masked(found)
        self._told[key] = data
        self._tell([StateSaved(agent, file, saved, tuple(sorted(masked)))])

    def _masked(self, saved: Saved) -> tuple[Saved, set[str]]:
        kinds: set[str] = set()

        def clean(text: str) -> str:
            found, those = self._mask(text)
            kinds.update(those)
            return found

        lists = {
            kind: tuple(
                entry.model_copy(update={"text": clean(entry.text), "tags": tuple(map(clean, entry.tags))})
                for entry in entries
            )
            for kind, entries in saved.lists.items()
        }
        doing = None if saved.doing is None else clean(saved.doing)
        return replace(saved, lists=lists, doing=doing), kinds

    def _reject(self, key: Key, fault: FaultError, folder: int, data: bytes | None = None) -> None:
        """Set aside what cannot be used and put the last good state in its place; then tell. `data`: what was judged."""
        if self._is_unfinished(key, folder):
            return
        agent, file = key
        kept = self._places.set_aside(agent, file, folder)
        self._restore(key, folder)
        stood = None
        if data is not None:
            # The agent may have saved again before it was taken away.
            try:
                stood = self._places.kept(agent, kept)
                if stood is not None and stood != data:
                    self._accept(key, stood)
                    return
            except FaultError as newer:
                fault = newer
            if stood is not None:
                kept = self._places.once(agent, kept, stood)
        self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])

    def _is_unfinished(self, key: Key, folder: int) -> bool:
        """Whether somebody still writes what stands there: its close will be told, and what stays open is looked at again."""
        now = time.monotonic()
        if now - self._unfinished.get(key, now) <= OPEN_WAIT_S and is_written(key[1], folder):
            self._unfinished.setdefault(key, now)
            return True
        self._unfinished.pop(key, None)
        return False

    def _keep(self, key: Key, data: bytes, fault: FaultError) -> None:
        """The same for one in whose place another stands already."""
        kept = self._places.keep(*key, data)
        self._tell([StateRejected(*key, fault.line, fault.field, fault.message, kept)])

    # -- what is to stand there ------------------------------------------------------------------------------------

    def _restore(self, key: Key, folder: int) -> None:
        """Put a file where nothing is; what came there meanwhile is looked at next."""
        if key not in self._known:
            return
        try:
            half = write_half(key[1], self._known[key], folder)
        except OSError as exc:
            # What was set aside is told all the same.
            self._again[key] = time.monotonic() + POLL_S
            logger.error("a state file cannot be put back yet", agent=key[0], file=key[1], error=str(exc))
            return
        try:
            exchange.move(folder, half, folder, key[1])
        except FileExistsError:
            os.unlink(half, dir_fd=folder)
            self._worker.ask(partial(self._look_in_time, key))

    def _publish(self, key: Key, body: bytes) -> None:
        before, self._known[key] = self._known.get(key), body
        if self._is_too_often(key, before == body):
            self._again.setdefault(key, time.monotonic() + POLL_S)
        else:
            self._put(key, before)

    def _is_too_often(self, key: Key, is_same: bool) -> bool:
        """Whether a file is put back as it was again and again."""
        times, last = self._repeated.get(key, (0, 0.0))
        now = time.monotonic()
        times = times + 1 if is_same and now - last < POLL_S else 0
        self._repeated[key] = times, now
        return times > MOST_AT_ONCE

    def _put(self, key: Key, before: bytes | None) -> None:
        """Put a file in place; where that cannot be now, later."""
        agent, _ = key
        if agent not in self._places.homes:
            return
        if key in self._late:
            self._again[key] = self._late[key]  # what stands there is to be read first
            return
        try:
            with self._places.folder(agent) as folder:
                self._replace(key, before, folder)
                found = os.fstat(folder)
            if self._standing.get(agent) != (found.st_dev, found.st_ino):
                self._furnish(agent)  # another folder stands there now
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                self._furnish(agent)
                return
            self._again[key] = time.monotonic() + POLL_S
            raise

    def _replace(self, key: Key, before: bytes | None, folder: int) -> None:
        """Put a file in place. What stood there and was not read yet is told, and comes back merged."""
        file, body = key[1], self._known[key]
        half = write_half(file, body, folder)
        try:
            exchange.exchange(folder, half, folder, file)
        except FileNotFoundError:
            try:
                exchange.move(folder, half, folder, file)
            except FileExistsError:
                os.unlink(half, dir_fd=folder)
                raise
            return
        except BaseException:
            with suppress(OSError):
                os.unlink(half, dir_fd=folder)
            raise
        # Under the other name stands now what stood there, whatever that is.
        self._take_away(key, half, {before, body, self._told.pop(key, None)}, folder)

    def _take_away(self, key: Key, half: str, read: set[bytes | None], folder: int) -> None:
        """Look at what was replaced before it goes; `read`: contents that are known already."""
        try:
            stood = content(half, folder)
        except FaultError as fault:
            agent, file = key
            kept = self._places.set_aside(agent, file, folder, half)
            self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])
            return
        handle = os.open(half, READ, dir_fd=folder)
        if writers.is_written(handle):
            # Whoever has it open writes on.
            known = stood if stood in read else None
            self._replaced.append(_Replaced(key, half, handle, time.monotonic() + CLOSE_WAIT_S, known))
            return
        # Between the look and now it may have been written and closed.
        stood = all_of(handle)
        os.close(handle)
        # The beginning of what is to stand there is ours, from a write that was cut off.
        if stood not in read and not self._known.get(key, b"").startswith(stood):
            self._judge(key, stood, None)
        os.unlink(half, dir_fd=folder)

    def _look_at_replaced(self) -> None:
        waiting, self._replaced = self._replaced, []
        left = Counter(one.key[0] for one in waiting)
        most = min(MOST_REPLACED, MOST_REPLACED_OF_ALL // max(1, len(left)))
        for one in waiting:
            # An agent that keeps many of them open must not use up our descriptors: its oldest are read as they are.
            is_late = time.monotonic() >= one.until or left[one.key[0]] > most
            left[one.key[0]] -= 1
            if writers.is_written(one.handle) and not is_late:
                self._replaced.append(one)
            else:
                self._worker.attempt(partial(self._read_replaced, one))

    def _read_replaced(self, one: _Replaced) -> None:
        try:
            data = all_of(one.handle)
        finally:
            os.close(one.handle)
        if data != one.known:
            self._judge(one.key, data, None)
        if one.key[0] in self._places.homes:
            with self._places.folder(one.key[0]) as folder, suppress(FileNotFoundError):
                os.unlink(one.half, dir_fd=folder)

    def _try_again(self) -> None:
        """What could not be put in place, for a disk that was full or the like, or was to wait."""
        now = time.monotonic()
        for key in [key for key, due in self._again.items() if due <= now]:
            del self._again[key]
            self._worker.attempt(partial(self._put, key, self._known[key]))


def _of_passport(data: bytes, known: bytes) -> FaultError:
    """Why a passport that was changed is put back."""
    words = "passport.json follows aipass.toml, and nobody else writes it"
    text, found = read(data)
    ours = json.loads(known)
    for field in (*KEYS[PASSPORT], *found):
        if found.get(field) != ours.get(field):
            return FaultError(words, line_of(text, (field,)), field)
    return FaultError(words)
