"""Where the state files stand: a thread that looks at what agents save there, and puts in place what the engine says.

It tells what was saved and lets the engine merge; what cannot be used it sets aside, and puts the last good state back at
once. Nothing that an agent wrote is overwritten before it was read.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import re
import select
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass import folders, swap
from aipass.crash import write_report
from aipass.sources import inotify, writers
from aipass.trinity.document import MAX_BYTES, FaultError, line_of, read
from aipass.trinity.model import FILES, FOLDER, KEYS, PASSPORT, Saved, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from aipass.config import State
    from aipass.layout import Layout

logger = structlog.get_logger("aipass")

#: Where the kernel tells nothing, files are looked at so often.
POLL_S = 1.0
#: A file that was replaced while somebody had it open for writing is read when it is closed; looked at so often.
CLOSE_LOOK_S, CLOSE_WAIT_S, MOST_REPLACED = 0.02, 600.0, 50
#: What an engine that was killed left of a file that it was just replacing.
_HALF = re.compile(r"\.(passport|local|observations)\.json\.[0-9a-f]{8}")
MASK = inotify.MASK | inotify.IN_MOVE_SELF
_LEFT = inotify.IN_MOVE_SELF | inotify.IN_DELETE_SELF | inotify.IN_IGNORED
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE, _OURS = 0o755, 0o700
ASIDE = ".aipass/quarantine/trinity"

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
    """A file that somebody had open for writing when another took its place; `known`: what was read of it already."""

    key: Key
    handle: int
    until: float
    known: bytes | None = None


class Shelf:
    """A source of what agents save. Everything but the engine's side happens in its own thread.

    `mask` takes out of a text what looks like a secret, and says what kinds those were.
    """

    name = "state"

    def __init__(self, layout: Layout, mask: Callable[[str], tuple[str, list[str]]]) -> None:
        self._layout, self._mask = layout, mask
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = os.pipe()
        self._open, self._lock, self._ending = 0, threading.Lock(), False
        self._thread: threading.Thread | None = None
        self._inotify: inotify.Inotify | None = None
        self._watches: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}
        #: Which folder is watched: another may come to stand in its place.
        self._standing: dict[str, tuple[int, int]] = {}
        self._bad: set[str] = set()
        self._seen: dict[Key, tuple[int, ...] | None] = {}
        self._homes: dict[str, str] = {}
        self._limits: State | None = None
        #: What the engine said last, and what was told to it last.
        self._known: dict[Key, bytes] = {}
        self._told: dict[Key, bytes] = {}
        self._replaced: list[_Replaced] = []
        self._again: set[Key] = set()

    # -- the engine's side -----------------------------------------------------------------------------------------

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin to watch; nothing is looked at before `serve` says whose files there are."""
        self._tell = tell
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        try:
            self._inotify = inotify.Inotify()
        except (OSError, AttributeError):
            self._inotify = None
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it was asked for before is done."""
        self._ending = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def is_settled(self) -> bool:
        """Whether nothing waits here."""
        with self._lock:
            return self._open == 0

    def serve(self, homes: Mapping[str, str], limits: State, known: Mapping[Key, bytes]) -> None:
        """Look after the files of these agents, by their homes; `known` is what is to stand in them."""
        self._ask(lambda: self._serve(dict(homes), limits, dict(known)))

    def publish(self, agent: str, file: str, body: bytes) -> None:
        """Put a file in place."""
        self._ask(lambda: self._publish((agent, file), body))

    def _ask(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._open += 1
        self._asked.put(work)
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_out, b"w")
        except OSError:
            pass  # it is awake already

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._mask("")  # what it needs takes a while to load
        while True:
            while not self._asked.empty():
                work = self._asked.get()
                self._try(work)
                with self._lock:
                    self._open -= 1
            if self._ending and self._asked.empty():
                return
            self._wait()
            self._try(self._round)

    def _round(self) -> None:
        if self._inotify is not None:
            self._take(self._inotify.read())
        self._look_at_replaced()
        self._try_again()
        self._poll()

    def _try(self, work: Callable[[], None]) -> None:
        """One thing that goes wrong must not leave all other files alone."""
        try:
            work()
        except OSError as exc:
            logger.error("a state file cannot be seen to", error=str(exc))
        except Exception as exc:  # noqa: BLE001 - the thread's own boundary: a bug becomes a report
            report = write_report(self._layout.crashes, exc, "state files")
            logger.error("a bug in aipass", report=str(report), error=str(exc))

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify.descriptor, select.POLLIN)
        wait = CLOSE_LOOK_S if self._replaced else POLL_S if self._again or self._unwatched() else None
        poll.poll(None if wait is None else wait * 1000)
        try:
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            pass

    def _take(self, events: list[inotify.Raw]) -> None:
        """Look at whatever the kernel names, each file once."""
        touched: dict[Key, None] = {}
        left: dict[str, None] = {}
        for raw in events:
            if raw.mask & inotify.IN_Q_OVERFLOW:
                touched |= dict.fromkeys((agent, file) for agent in self._homes for file in FILES)
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
            self._try(partial(self._furnish, agent))
        for key in touched:
            self._try(partial(self._look, key))

    def _is_fresh(self, agent: str, file: str) -> bool:
        """A plain file of one name that somebody has just made, and will close."""
        try:
            found = os.lstat(self._place(agent) / file)
        except OSError:
            return True
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    # -- whose files there are -------------------------------------------------------------------------------------

    def _serve(self, homes: dict[str, str], limits: State, known: dict[Key, bytes]) -> None:
        for agent in self._homes.keys() - homes.keys() | {
            name for name, home in homes.items() if self._homes.get(name, home) != home
        }:
            self._unwatch(agent)
        self._homes, self._limits = homes, limits
        self._known |= known
        for agent in homes:
            self._try(partial(self._furnish, agent))

    def _furnish(self, agent: str) -> None:
        """Have the folder there and watched, and look at all that is in it."""
        self._unwatch(agent)
        try:
            with self._folder(agent) as folder:
                if self._inotify is not None:
                    try:
                        # By its descriptor: the path may lead elsewhere by now.
                        watch = self._inotify.add(os.fsencode(f"/proc/self/fd/{folder}/."), MASK)
                        self._watches[watch] = agent
                        found = os.fstat(folder)
                        self._standing[agent] = found.st_dev, found.st_ino
                        self._watch_of[agent] = watch
                    except OSError as exc:
                        logger.warning("state files are polled", agent=agent, error=str(exc))
        except OSError as exc:
            if exc.errno not in {errno.ELOOP, errno.ENOTDIR}:
                raise
            self._clear(agent)
            return
        self._sweep(agent)
        for file in FILES:
            self._look((agent, file))

    def _sweep(self, agent: str) -> None:
        """What an engine that was killed had taken away from its place, and not read yet, is read now."""
        with self._folder(agent) as folder:
            for name in os.listdir(folder):
                if (half := _HALF.fullmatch(name)) is None:
                    continue
                key = agent, f"{half[1]}.json"
                with suppress(FaultError, FileNotFoundError):
                    data = _content(name, folder)
                    # The beginning of what is to stand there was ours.
                    if not self._known.get(key, b"").startswith(data):
                        self._judge(key, data, None)
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)

    def _clear(self, agent: str) -> None:
        """Something that is no folder stands in the place of `.trinity`, or on the way there."""
        *above, name = self._names(agent)
        try:
            with folders.opened(self._layout.root, above, mode=_MODE) as folder:
                kept = self._set_aside(agent, name, folder)
        except OSError as exc:
            reason = f"its home {self._homes[agent]} is no folder, or leads through a symbolic link ({exc.strerror})"
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
        if watch is not None and self._inotify is not None:
            self._watches.pop(watch, None)
            self._inotify.remove(watch)

    def _unwatched(self) -> list[str]:
        return [agent for agent in self._homes if agent not in self._watch_of]

    def _poll(self) -> None:
        for agent in self._unwatched():
            for file in FILES:
                mark = self._mark(agent, file)
                if self._seen.get((agent, file)) != mark:
                    self._try(partial(self._look, (agent, file)))
                    self._seen[agent, file] = self._mark(agent, file)

    def _mark(self, agent: str, file: str) -> tuple[int, ...] | None:
        try:
            found = os.lstat(self._place(agent) / file)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _names(self, agent: str) -> list[str]:
        return [*(name for name in self._homes[agent].split("/") if name not in {"", "."}), FOLDER]

    def _place(self, agent: str) -> Path:
        return self._layout.root.joinpath(*self._names(agent))

    @contextmanager
    def _folder(self, agent: str) -> Iterator[int]:
        with folders.opened(self._layout.root, self._names(agent), mode=_MODE) as folder:
            mode = os.fstat(folder).st_mode
            if mode & _OURS != _OURS:
                os.fchmod(folder, stat.S_IMODE(mode) | _OURS)
            yield folder

    # -- what was saved --------------------------------------------------------------------------------------------

    def _look(self, key: Key) -> None:
        """Find out what stands in a file's place, and do with it what is to be done."""
        agent, file = key
        if agent not in self._homes:
            return
        with self._folder(agent) as folder:
            try:
                data = _content(file, folder)
            except FileNotFoundError:
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
        saved, masked = self._masked(parse(file, data, self._limits))
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
        agent, file = key
        kept = self._set_aside(agent, file, folder)
        self._restore(key, folder)
        if data is not None:
            # The agent may have saved again before it was taken away.
            try:
                with self._aside(agent) as aside:
                    stood = _content(kept.rpartition("/")[2], aside)
                if stood != data:
                    self._accept(key, stood)
                    return
            except FaultError as newer:
                fault = newer
            except OSError:
                pass  # it is kept elsewhere
        self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])

    def _keep(self, key: Key, data: bytes, fault: FaultError) -> None:
        """The same for one in whose place another stands already."""
        agent, file = key
        stamp = f"{time.time_ns()}-{file}"
        with self._aside(agent) as folder:
            _put(stamp, data, folder)
        kept = f"{ASIDE}/{agent}/{stamp}"
        self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])

    def _set_aside(self, agent: str, name: str, folder: int, standing: str | None = None) -> str:
        """Take away what stands there, whatever it is; returns where it is now, relative to the root.

        `standing`: its name there, where that is another than it is to be kept by.
        """
        stamp = f"{time.time_ns()}-{name}"
        with self._aside(agent) as target:
            try:
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=target)
            except OSError as exc:
                if exc.errno not in {errno.EXDEV, errno.EACCES, errno.EPERM}:
                    raise
                # The home is on another disk, or it is a folder that may not be moved: beside it, then.
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=folder)
                return f"{self._homes[agent]}/{FOLDER}/{stamp}"
        return f"{ASIDE}/{agent}/{stamp}"

    @contextmanager
    def _aside(self, agent: str) -> Iterator[int]:
        with folders.opened(self._layout.root, (*ASIDE.split("/"), agent)) as folder:
            yield folder

    # -- what is to stand there ------------------------------------------------------------------------------------

    def _restore(self, key: Key, folder: int) -> None:
        """Put a file where nothing is; what came there meanwhile is looked at next."""
        if key not in self._known:
            return
        half = _write(key[1], self._known[key], folder)
        try:
            swap.move(folder, half, folder, key[1])
        except FileExistsError:
            os.unlink(half, dir_fd=folder)
            self._ask(partial(self._look, key))

    def _publish(self, key: Key, body: bytes) -> None:
        agent, _ = key
        before = self._known.get(key)
        self._known[key] = body
        if agent not in self._homes:
            return
        try:
            with self._folder(agent) as folder:
                self._replace(key, before, folder)
                found = os.fstat(folder)
            if self._standing.get(agent) != (found.st_dev, found.st_ino):
                self._furnish(agent)  # another folder stands there now
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                self._furnish(agent)
                return
            self._again.add(key)
            raise

    def _replace(self, key: Key, before: bytes | None, folder: int) -> None:
        """Put a file in place. What stood there and was not read yet is told, and comes back merged."""
        file, body = key[1], self._known[key]
        half = _write(file, body, folder)
        try:
            try:
                swap.exchange(folder, half, folder, file)
            except FileNotFoundError:
                swap.move(folder, half, folder, file)
                return
            # Under the other name stands now what stood there, whatever that is.
            self._take_away(key, half, {before, body, self._told.pop(key, None)}, folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(half, dir_fd=folder)

    def _take_away(self, key: Key, half: str, read: set[bytes | None], folder: int) -> None:
        """Look at what was replaced before it goes; `read`: contents that are known already."""
        try:
            stood = _content(half, folder)
        except FaultError as fault:
            agent, file = key
            kept = self._set_aside(agent, file, folder, half)
            self._tell([StateRejected(agent, file, fault.line, fault.field, fault.message, kept)])
            return
        handle = os.open(half, _READ, dir_fd=folder)
        if writers.is_written(handle):
            # It has no name soon, and whoever has it open writes on.
            known = stood if stood in read else None
            self._replaced.append(_Replaced(key, handle, time.monotonic() + CLOSE_WAIT_S, known))
            return
        # Between the look and now it may have been written and closed.
        stood = self._all_of(handle)
        os.close(handle)
        if stood not in read:
            self._judge(key, stood, None)

    @staticmethod
    def _all_of(handle: int) -> bytes:
        os.lseek(handle, 0, os.SEEK_SET)
        with open(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)

    def _look_at_replaced(self) -> None:
        waiting, self._replaced = self._replaced, []
        for place, one in enumerate(waiting):
            # A program that keeps many of them open must not use up our descriptors: the oldest are read as they are.
            is_late = time.monotonic() >= one.until or len(waiting) - place > MOST_REPLACED
            if writers.is_written(one.handle) and not is_late:
                self._replaced.append(one)
            else:
                self._try(partial(self._read_replaced, one))

    def _read_replaced(self, one: _Replaced) -> None:
        try:
            data = self._all_of(one.handle)
        finally:
            os.close(one.handle)
        if data != one.known:
            self._judge(one.key, data, None)

    def _try_again(self) -> None:
        """What could not be put in place, for a disk that was full or the like."""
        waiting, self._again = self._again, set()
        for key in waiting:
            self._try(partial(self._publish, key, self._known[key]))


def _content(name: str, folder: int) -> bytes:
    """What stands in a file. Raises FileNotFoundError, and FaultError where it is no file that can be read."""
    try:
        handle = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise FaultError("it is a symbolic link; it must be a plain file") from None
        if exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}:
            raise  # that says nothing of the file
        raise FaultError(f"it cannot be read ({exc.strerror}); it must be a plain file") from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            raise FaultError(
                f"it is {'a folder' if stat.S_ISDIR(kind) else 'no plain file'}; it must be a plain file"
            )
        with open(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(handle)


def _put(name: str, data: bytes, folder: int) -> None:
    """Write a file whole or not at all."""
    os.rename(_write(name, data, folder), name, src_dir_fd=folder, dst_dir_fd=folder)


def _write(name: str, data: bytes, folder: int) -> str:
    """Write a file under a name of its own, which is returned."""
    half = f".{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(half, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
    except BaseException:
        with suppress(OSError):
            os.unlink(half, dir_fd=folder)
        raise
    return half


def _of_passport(data: bytes, known: bytes) -> FaultError:
    """Why a passport that was changed is put back."""
    words = "passport.json follows aipass.toml, and nobody else writes it"
    text, found = read(data)
    ours = json.loads(known)
    for field in (*KEYS[PASSPORT], *found):
        if found.get(field) != ours.get(field):
            return FaultError(words, line_of(text, (field,)), field)
    return FaultError(words)
