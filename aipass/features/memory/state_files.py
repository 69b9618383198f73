"""The source of state file saves: a thread that reads what agents save, and writes the files that the engine publishes.

It reports each save, and the engine merges it. A file that cannot be used is moved to quarantine, and the last good state is
restored immediately. No save is overwritten before it was read.
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

#: The polling interval for folders that inotify does not watch.
POLL_S = 1.0
#: A file that was replaced while a program had it open for writing is read when the program closes it,
#: checked at this interval. Each holds a descriptor, so their number is limited for each agent and for all.
CLOSE_LOOK_S, CLOSE_WAIT_S, MOST_REPLACED, MOST_REPLACED_OF_ALL = 0.02, 600.0, 20, 400
#: A broken file that is open for writing is probably half written: it is judged at its close, or after this time.
OPEN_WAIT_S = 10.0
#: After this many restored files without a pause, writes wait POLL_S: a program that reverts each write would loop with us.
MOST_AT_ONCE = 20
#: A rate limit (token bucket) for each file: a burst, then one look per interval. Saves in between are intermediate states of
#: the last save.
LOOKS_AT_ONCE, LOOK_EVERY_S = 20, 2.0
#: The most replaced files of a killed engine that the next one reads; in a folder that appeared later the most is lower,
#: because an agent made files with such names, not an engine.
MOST_HALVES, MOST_MOVED_HALVES = 60, 5
MASK = inotify.MASK | inotify.IN_MOVE_SELF
_LEFT = inotify.IN_MOVE_SELF | inotify.IN_DELETE_SELF | inotify.IN_IGNORED

#: Agent and file name.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StateSaved:
    """A report: an agent saved a valid state file. `masked`: the kinds of secrets that were masked in it."""

    agent: str
    file: str
    saved: Saved
    masked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateRejected:
    """A report: a state file cannot be used. `kept`: where it is now, relative to the root; None where it was not kept."""

    agent: str
    file: str
    line: int
    field: str
    reason: str
    kept: str | None


@dataclass(slots=True)
class _Replaced:
    """A replaced file that a program still has open for writing.

    It keeps a name, `half`, so that the next engine finds it if this one is killed. `known`: content that was read already.
    """

    key: Key
    half: str
    handle: int
    until: float
    known: bytes | None = None


class StateFiles:
    """The source that reports saves of state files. Its public methods only queue work for its own thread.

    `mask` returns a text with its secrets masked, and the kinds of those secrets.
    """

    name = "state"

    def __init__(self, layout: Layout, mask: Callable[[str], tuple[str, list[str]]]) -> None:
        self._mask = mask
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._worker = Worker(self.name, layout.crashes, self._round, self._patience)
        self._places = Places(layout)
        self._watches: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}
        #: Device and inode of each watched folder: a program may put another folder in its place.
        self._standing: dict[str, tuple[int, int]] = {}
        self._bad: set[str] = set()
        self._seen: dict[Key, tuple[int, ...]] = {}
        self._limits: State | None = None
        #: The content that the engine published last, and the content that was reported to it last.
        self._known: dict[Key, bytes] = {}
        self._told: dict[Key, bytes] = {}
        self._replaced: list[_Replaced] = []
        self._again: dict[Key, float] = {}
        #: Token buckets: looks that are left, and as of when; and the files that wait for a token.
        self._looks: dict[Key, tuple[float, float]] = {}
        self._late: dict[Key, float] = {}
        #: Broken files that are still open for writing, and since when.
        self._unfinished: dict[Key, float] = {}
        #: How often the same content was written again without a pause, and when last.
        self._repeated: dict[Key, tuple[int, float]] = {}

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Start the thread. It reads no file before `serve` names the agents."""
        self._tell = tell
        self._worker.start()
        # Loads the detectors of secrets now: the first save would wait for that.
        self._worker.ask(lambda: self._mask("") and None)

    def stop(self) -> None:
        """Finish the queued work, and end the thread."""
        self._worker.stop()
        for one in self._replaced:
            os.close(one.handle)  # the file keeps its name, and the next engine reads it

    def is_settled(self) -> bool:
        """Return whether no work is queued or waits for a time."""
        return self._worker.is_settled() and not self._late and not self._unfinished

    def serve(self, homes: Mapping[str, str], limits: State, known: Mapping[Key, bytes]) -> None:
        """Watch the files of exactly these agents. `homes`: relative to the root; `known`: the published contents."""
        self._worker.ask(lambda: self._serve(dict(homes), limits, dict(known)))

    def publish(self, agent: str, file: str, body: bytes) -> None:
        """Write a file, unless an unread save is there: then the save is reported first. Retried until the disk takes it."""
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
        """Look once at each file that inotify names."""
        touched: dict[Key, None] = {}
        left: dict[str, None] = {}
        for raw in events:
            # The kernel dropped events, and does not say of which files.
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
            # A created file is still empty: its close follows. A second name (link) or a symbolic link has no close.
            if file in FILES and (raw.mask != inotify.IN_CREATE or not self._is_fresh(agent, file)):
                touched[agent, file] = None
        for agent in left:
            if self._may_look((agent, FOLDER)):
                self._worker.attempt(partial(self._furnish, agent))
        for key in touched:
            self._worker.attempt(partial(self._look_in_time, key))

    def _is_fresh(self, agent: str, file: str) -> bool:
        """Return whether it is a plain file with one name: its writer will close it."""
        try:
            found = os.lstat(self._places.path(agent) / file)
        except OSError:
            return True
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    # -- agents and folders ----------------------------------------------------------------------------------------

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
        """Make and watch the state folder of an agent, and look at all its files."""
        self._unwatch(agent)
        try:
            with self._places.folder(agent) as folder:
                self._bad.discard(agent)
                if self._worker.inotify is not None:
                    try:
                        # By its descriptor: an agent may have replaced a folder of the path by now.
                        watch = self._worker.inotify.add(os.fsencode(f"/proc/self/fd/{folder}/."), MASK)
                        self._watches[watch] = agent
                        found = os.fstat(folder)
                        self._standing[agent] = found.st_dev, found.st_ino
                        self._watch_of[agent] = watch
                    except OSError as exc:
                        logger.warning("state files are polled", agent=agent, error=str(exc))
            if not self._is_in_place(agent):
                # Race: another folder took its place before the watch began, and inotify reports no such rename.
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
        """Return whether the path still leads to the watched folder; True where none is watched. Raises OSError."""
        if agent not in self._watch_of:
            return True
        with self._places.folder(agent) as folder:
            found = os.fstat(folder)
        return self._standing[agent] == (found.st_dev, found.st_ino)

    def _sweep(self, agent: str, most: int) -> None:
        """Read at most `most` replaced files that a killed engine has not read yet."""
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
                    # Agents do not write passports, so the file is ours. A folder with such a name is not, and stays.
                    with suppress(OSError):
                        os.unlink(name, dir_fd=folder)
                else:
                    with suppress(FileNotFoundError):
                        self._take_away(key, name, {self._known.get(key)}, folder, ours=True)

    def _unblock(self, agent: str, why: OSError) -> None:
        """Remove a file or link that is in the place of a folder. Raises `why` if that is not the cause."""
        if why.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise why
        if self._may_look((agent, FOLDER)):
            self._clear(agent)

    def _clear(self, agent: str) -> None:
        """Move away what is in the place of `.trinity`, make the folder, and report it."""
        try:
            with self._places.above(agent) as folder:
                kept = self._places.set_aside(agent, FOLDER, folder)
        except OSError as exc:
            reason = f"its home {self._places.homes[agent]} is not a folder, or its path has a symbolic link ({exc.strerror})"
            # Once: each retry would send the agent the same message.
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
        """Return what changes when a file or its folder changes: inodes, size, mtime."""
        mark: tuple[int, ...] = ()
        with suppress(OSError):
            place = self._places.path(agent)
            folder = os.lstat(place)
            mark = folder.st_ino, stat.S_IFMT(folder.st_mode)
            found = os.lstat(place / file)
            mark += found.st_ino, found.st_size, found.st_mtime_ns
        return mark

    # -- saves -----------------------------------------------------------------------------------------------------

    def _look_in_time(self, key: Key) -> None:
        if key[1] == FOLDER:
            self._late.pop(key, None)
            self._furnish(key[0])
        elif self._may_look(key):
            self._look(key)

    def _may_look(self, key: Key) -> bool:
        """Take a token of the rate limit. Without one, return False and queue the look for the time of the next token."""
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
        """Read a file, then report, restore or reject it."""
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
        """Accept or reject a content. `folder`: where the file is; None where another file already replaced it."""
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
        """Report a save that is new. Raises FaultError where it cannot be used."""
        agent, file = key
        if data in {self._known.get(key), self._told.get(key)}:
            return
        if file == PASSPORT and key not in self._known:
            self._told[key] = data  # from an earlier ledger: the engine replaces it at its first publish
            return
        if file == PASSPORT:
            raise _of_passport(data, self._known.get(key, b"{}"))
        assert self._limits is not None
        known = self._known.get(key, b"")
        found = parse(file, data, self._limits, known)
        if known and found.found == json.loads(known):
            # Only the form differs. Writing ours back would fight with the formatter of an editor.
            self._told[key] = data
            return
        saved, masked = self._masked(found)
        # Before the report: the engine answers with a publication, and `_replace` must know that this content was read.
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
        """Move a broken file to quarantine, restore the last good state, and report it. `data`: the content that was judged."""
        if self._is_unfinished(key, folder):
            return
        agent, file = key
        kept = self._places.set_aside(agent, file, folder)
        self._restore(key, folder)
        stood = None
        if data is not None:
            # Race: the agent may have saved again between the read and the move. A newer valid save is accepted.
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
        """Return whether a program still writes the file: then its close, or OPEN_WAIT_S, leads to the next look."""
        now = time.monotonic()
        if now - self._unfinished.get(key, now) <= OPEN_WAIT_S and is_written(key[1], folder):
            self._unfinished.setdefault(key, now)
            return True
        self._unfinished.pop(key, None)
        return False

    def _keep(self, key: Key, data: bytes, fault: FaultError) -> None:
        """Quarantine and report a broken content that was already replaced on the disk."""
        kept = self._places.keep(*key, data)
        self._tell([StateRejected(*key, fault.line, fault.field, fault.message, kept)])

    # -- writes ----------------------------------------------------------------------------------------------------

    def _restore(self, key: Key, folder: int) -> None:
        """Write the last good state where no file is. A file that appears at the same time is kept, and read next."""
        if key not in self._known:
            return
        try:
            half = write_half(key[1], self._known[key], folder)
        except OSError as exc:
            # No exception: the caller still has to report the rejected file.
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
        """Return whether the same content was written more than MOST_AT_ONCE times without a pause."""
        times, last = self._repeated.get(key, (0, 0.0))
        now = time.monotonic()
        times = times + 1 if is_same and now - last < POLL_S else 0
        self._repeated[key] = times, now
        return times > MOST_AT_ONCE

    def _put(self, key: Key, before: bytes | None) -> None:
        """Write a file now; after an error, or while a look waits, queue it for later."""
        agent, _ = key
        if agent not in self._places.homes:
            return
        if key in self._late:
            self._again[key] = self._late[key]  # the save that is there must be read first
            return
        try:
            with self._places.folder(agent) as folder:
                self._replace(key, before, folder)
                found = os.fstat(folder)
            if self._standing.get(agent) != (found.st_dev, found.st_ino):
                self._furnish(agent)  # another folder took its place
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                self._furnish(agent)
                return
            self._again[key] = time.monotonic() + POLL_S
            raise

    def _replace(self, key: Key, before: bytes | None, folder: int) -> None:
        """Exchange a file for its new content in one step. An unread save that was there is reported, and comes back merged."""
        file, body = key[1], self._known[key]
        half = write_half(file, body, folder)
        try:
            # Not a rename over it: that would destroy a save which came since the last look.
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
        # After the exchange `half` is the name of the old file, or of anything else that was there.
        self._take_away(key, half, {before, body, self._told.pop(key, None)}, folder)

    def _take_away(
        self, key: Key, half: str, read: set[bytes | None], folder: int, *, ours: bool = False
    ) -> None:
        """Read a replaced file, then remove it. `read`: contents that are known already. `ours`: we may have begun it ourselves."""
        try:
            stood = content(half, folder)
        except FaultError as fault:
            agent, file = key
            kept = self._places.set_aside(agent, file, folder, half)
            self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])
            return
        handle = os.open(half, READ, dir_fd=folder)
        if writers.is_written(handle):
            # The program that has it open will write more: reading it now would lose the rest.
            known = stood if stood in read else None
            self._replaced.append(_Replaced(key, half, handle, time.monotonic() + CLOSE_WAIT_S, known))
            return
        # Race: a program may have written and closed it between the first read and the check.
        stood = all_of(handle)
        os.close(handle)
        # A beginning of the known content is our own write, cut off by a kill: no save. In its place a file of ours is whole.
        if stood not in read and not (ours and self._known.get(key, b"").startswith(stood)):
            self._judge(key, stood, None)
        os.unlink(half, dir_fd=folder)

    def _look_at_replaced(self) -> None:
        waiting, self._replaced = self._replaced, []
        left = Counter(one.key[0] for one in waiting)
        most = min(MOST_REPLACED, MOST_REPLACED_OF_ALL // max(1, len(left)))
        for one in waiting:
            # An agent that keeps many files open must not exhaust our descriptors: its oldest are read as they are.
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
        """Write the files whose earlier write failed (a full disk, for example) or had to wait."""
        now = time.monotonic()
        for key in [key for key, due in self._again.items() if due <= now]:
            del self._again[key]
            self._worker.attempt(partial(self._put, key, self._known[key]))


def _of_passport(data: bytes, known: bytes) -> FaultError:
    """Return the fault of a changed passport, at its first changed field."""
    words = "only aipass writes passport.json, from aipass.toml; change aipass.toml instead"
    text, found = read(data)
    ours = json.loads(known)
    for field in (*KEYS[PASSPORT], *found):
        if found.get(field) != ours.get(field):
            return FaultError(words, line_of(text, (field,)), field)
    return FaultError(words)
