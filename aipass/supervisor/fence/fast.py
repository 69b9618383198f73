"""The fast path of the fence: the face of `_fast.c`, which carries out the simple calls of runs without Python.

Python stays the authority. What `_fast.c` may carry out is what it was told here: a verdict about all plain names
directly in a folder, or about one file. Every change of rights calls `renew`, which ends all verdicts.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from aipass.supervisor.fence import _fast, gitfolder, runs_code
from aipass.supervisor.fence.decide import Allowed, Hold, Operation, decide, whole
from aipass.supervisor.fence.fenced import JOURNAL, ObjectId
from aipass.supervisor.fence.territory import ANYWHERE_NEVER, TRINITY, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aipass.supervisor.fence.fenced import Fenced
    from aipass.supervisor.fence.permit import Common

#: Flags of a verdict, as in `_fast.c`.
HOLDS, FOLDERS = 1, 2
#: The two tables of a run in `_fast.c`.
OPENED, REMOVED = 0, 1
#: Limits: of paths that must not exist beside one verdict, each of which is looked for at each call; of remembered names.
MOST_ABSENT, REMEMBERED = 16, 20_000
#: How long a freeze waits for calls that are being carried out. One may wait for the disk: then the change is tried again later.
FREEZE_WAIT_S = 0.002
#: How long after that no freeze waits: then a change is made only where no call is being carried out.
FREEZE_PAUSE_S = 0.02
#: The version of the functions of `_fast_python.c`, and of what they mean.
FACE = 1
if getattr(_fast, "FACE", None) != FACE:
    raise ImportError("the compiled part is of another version; install aipass again")


class FastPath:
    """The fast path of one fence. Made and used by the serving thread, whose descriptors and wall its threads inherit."""

    def __init__(self, common: Common, *, mixed: bool = False) -> None:
        self.common = common
        #: Readable when `next` has something.
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        handle = os.open(common.root, os.O_PATH | os.O_CLOEXEC)
        try:
            device = os.fstat(handle).st_dev
        finally:
            os.close(handle)
        names = special_names()
        self._desk = _fast.desk_new(
            os.fsencode(common.root), common.root_mount, os.major(device), os.minor(device), self.wake, 128 if mixed else 0,
            names.whole, names.prefixes, names.suffixes, names.folding,
        )  # fmt: skip
        self.holds = FastHolds(self._desk)
        self._runs: dict[int, FastRun] = {}
        self._wait_again = 0.0

    def add(self, run: Fenced, own: dict[str, int], devices: Iterable[bytes]) -> FastRun:
        """Serve a run in a thread of its own. `own`: open descriptors of its folders. Raises OSError."""
        self.holds.agents[run.grant.run] = run.grant.agent
        made = self._runs[run.grant.run] = FastRun(self, self._desk, run, own, list(devices))
        return made

    def end(self, run: int) -> None:
        """Stop serving a run, and drop its holds. Idempotent."""
        made = self._runs.pop(run, None)
        if made is not None:
            made.stop()
        self.holds.end(run)
        self.holds.agents.pop(run, None)

    def next(self) -> Iterator[tuple[int, bytes | None]]:
        """What waits for Python: (run, notification), or (run, None) where the run's last process has ended."""
        while (found := _fast.desk_next(self._desk)) is not None:
            yield found

    def renew(self) -> None:
        """End all verdicts. In force when the path is idle: until then a call may be carried out by an old one."""
        for run in self._runs.values():
            run.learned.clear()
        _fast.desk_renew(self._desk)

    def is_idle(self) -> bool:
        """Whether no thread is between its judgement of a call and its act, so that all earlier changes are in force."""
        return _fast.desk_is_idle(self._desk)

    def freeze(self, frozen: bool) -> None:
        """Begin or end a freeze, in which all calls are forwarded. They are counted."""
        _fast.desk_freeze(self._desk, frozen)

    @contextmanager
    def frozen(self) -> Iterator[bool]:
        """A context in which all calls are forwarded. Gives whether no thread is busy; else nothing must be relied on."""
        self.freeze(True)
        try:
            now = time.monotonic()
            # Once in a while: many calls may ask for a freeze, and while they wait nobody is answered.
            until = now if now < self._wait_again else now + FREEZE_WAIT_S
            while not (idle := self.is_idle()) and time.monotonic() < until:
                time.sleep(FREEZE_WAIT_S / 20)
            if not idle and until > now:
                self._wait_again = until + FREEZE_PAUSE_S
            yield idle
        finally:
            self.freeze(False)


class FastHolds:
    """The holds in the table that the serving threads use; see holds.Holds."""

    def __init__(self, desk: _fast.Desk) -> None:
        self._desk = desk
        #: The agents of the served runs.
        self.agents: dict[int, str] = {}

    def get(self, path: str) -> Hold | None:
        """See holds.Holds."""
        found = _fast.hold_of(self._desk, os.fsencode(path))
        return None if found is None else Hold(found[0], self.agents.get(found[0], "?"), found[1])

    def items(self) -> list[tuple[str, Hold]]:
        """See holds.Holds."""
        return [
            (os.fsdecode(path), Hold(run, self.agents.get(run, "?"), since))
            for path, run, since in _fast.hold_items(self._desk)
        ]

    def claim(self, path: str, run: int, agent: str) -> bool | None:
        """See holds.Holds."""
        self.agents.setdefault(run, agent)
        return {1: True, 0: None, -1: False}[_fast.hold_claim(self._desk, os.fsencode(path), run)]

    def let_go(self, path: str, run: int, *, forced: bool = False) -> None:
        """See holds.Holds."""
        if path:
            _fast.hold_drop(self._desk, os.fsencode(path), run, forced)

    def end(self, run: int) -> None:
        """See holds.Holds."""
        _fast.hold_drop(self._desk, b"", run, True)


class FastRun:
    """The thread that serves one run, and what Python tells it."""

    def __init__(
        self, path: FastPath, desk: _fast.Desk, run: Fenced, own: dict[str, int], devices: list[bytes]
    ) -> None:
        self._path, self._fenced = path, run
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        folders = [(os.fsencode(name), own.get(name, -1)) for name in run.own]
        journal = os.fsencode(run.folder / JOURNAL)
        try:
            self._run = _fast.run_add(
                desk, run.grant.run, run.listener, self._stop, folders, devices, journal, run.walled
            )
        except BaseException:
            os.close(self._stop)
            raise
        #: Folders and files about which it has a verdict in this generation.
        self.learned: set[str] = set()
        run.opened, run.unnamed = FastNames(self._run), FastObjects(self._run)

    def serve(self, serves: bool) -> None:
        """Whether it may carry out calls itself; where it must not, it forwards all. In force when it is idle."""
        _fast.run_serve(self._run, serves)

    def is_idle(self) -> bool:
        """Whether it is not between its judgement of a call and its act."""
        return _fast.run_is_idle(self._run)

    def stop(self) -> None:
        """End the thread. Nothing is carried out any more if it was told not to serve, and was idle since."""
        _fast.run_stop(self._run)
        os.eventfd_write(self._stop, 1)
        os.close(self._stop)

    def last_write(self) -> float:
        """Time of the last write that it journalled, on the monotonic clock; 0 where there is none."""
        return float(_fast.run_state(self._run)[0]) / 1e9

    def counts(self) -> tuple[int, int]:
        """The numbers of calls that it carried out, and forwarded."""
        _, carried, forwarded = _fast.run_state(self._run)
        return carried, forwarded

    def learn(self, path: str, *, is_file: bool) -> None:
        """Tell it what was decided about a file below the root, and if possible about the whole folder around a path."""
        run, common = self._fenced, self._path.common
        folder, _, name = path.rpartition("/")
        grant = run.grant
        around = folder + "/"
        if folder and around not in self.learned and (flags := self._of_folder(folder)) is not None:
            named = [os.fsencode(one) for one in grant.territory.named_in(folder)]
            self._allow(around, flags, named, folder)
        known = path in self.learned or (around in self.learned and not is_special(name))
        # A piece of a git folder can complete one: Python looks each time.
        if not is_file or known or name.casefold() in gitfolder.PIECES:
            return
        passing = path in grant.temps or path in common.temporary or common.withdrawing.holds(path)
        if not passing and isinstance(decide(grant, Operation.WRITE, (path,)), Allowed):
            holds = grant.territory.owner(path).kind not in (Kind.PHASE, Kind.OWN)
            self._allow(path, HOLDS if holds else 0, (), path)

    def _of_folder(self, folder: str) -> int | None:
        """The flags of a verdict about all plain names in a folder; None where it depends on the name."""
        grant, common = self._fenced.grant, self._path.common
        kind = whole(grant, folder)
        if kind is None or common.withdrawing.holds(folder):
            return None
        inside = folder + "/"
        others = (*grant.made, *grant.temps, *common.temporary)
        if any(path.startswith(inside) for path in others):
            return None
        return FOLDERS | (0 if kind is Kind.PHASE else HOLDS)

    def _allow(self, path: str, flags: int, except_: Iterable[bytes], guarded: str) -> None:
        """Tell a verdict; one about a folder has a closing `/`. `guarded`: the path in which no git folder may be."""
        root = self._fenced.root
        absent = [
            os.fsencode(f"{root}/{above}/{head}")
            for above in gitfolder.may_be_above(guarded)
            for head in ("HEAD", "head")
        ]
        if len(absent) > MOST_ABSENT:
            return
        forgot = _fast.run_allow(self._run, os.fsencode(f"{root}/{path}"), flags, list(except_), absent)
        if forgot:
            self.learned.clear()
        self.learned.add(path)


class FastNames:
    """The paths that a run opened for writing: as a set."""

    def __init__(self, run: _fast.RunThread) -> None:
        self._run = run

    def __iter__(self) -> Iterator[str]:
        """All paths at this moment."""
        return iter([os.fsdecode(key) for key, _, _ in _fast.made_items(self._run, OPENED)])

    def add(self, path: str) -> None:
        """Add a path."""
        _fast.made_add(self._run, OPENED, os.fsencode(path))

    def difference_update(self, paths: Iterable[str]) -> None:
        """Remove paths."""
        for path in paths:
            _fast.made_drop(self._run, OPENED, os.fsencode(path))


class FastObjects:
    """The nameless files of a run: as a set. The oldest are forgotten together when there are too many."""

    def __init__(self, run: _fast.RunThread) -> None:
        self._run = run

    def __contains__(self, found: object) -> bool:
        """Whether the run has, or had, the only name of this object."""
        return isinstance(found, ObjectId) and bool(_fast.made_has(self._run, REMOVED, _key(found)))

    def add(self, found: ObjectId) -> None:
        """Add an object."""
        _fast.made_add(self._run, REMOVED, _key(found))

    def discard(self, found: ObjectId) -> None:
        """Remove an object, if it is there."""
        _fast.made_drop(self._run, REMOVED, _key(found))


def _key(found: ObjectId) -> bytes:
    """An object as `_fast.c` writes it: device, inode, time of birth."""
    device = os.major(found.dev) << 32 | os.minor(found.dev)
    return (
        device.to_bytes(8, sys.byteorder)
        + found.ino.to_bytes(8, sys.byteorder)
        + found.born.to_bytes(8, sys.byteorder, signed=True)
    )


#: All characters beyond ASCII whose folded form is ASCII, such as the Kelvin sign: str.casefold finds names with them special.
FOLDING = "".join(
    map(chr, (0xDF, 0x17F, 0x1E9E, 0x212A, 0xFB00, 0xFB01, 0xFB02, 0xFB03, 0xFB04, 0xFB05, 0xFB06))
)


class SpecialNames:
    """Names that can have a meaning of their own in any folder, in small letters: no verdict about a folder is about them."""

    def __init__(self) -> None:
        whole = {TRINITY, *ANYWHERE_NEVER}
        whole |= {name + end for name in gitfolder.READ for end in ("", ".lock")}
        prefixes, suffixes = set(), set()
        for entry in runs_code.entries():
            if not entry.guarded:
                continue
            # By its last component, whatever must be above it: too many names are only slower.
            name = entry.pattern.rstrip("/").rpartition("/")[2]
            plain = re.split(r"[*?\[]", name)
            if len(plain) == 1:
                whole.add(name)
            elif plain[0]:
                prefixes.add(plain[0])
            else:
                suffixes.add(re.split(r"[*?\]]", name)[-1])
        self.whole, self.prefixes, self.suffixes = (
            sorted(os.fsencode(name.lower()) for name in names) for names in (whole, prefixes, suffixes)
        )
        assert all(self.prefixes)
        assert all(self.suffixes)
        self.folding = [letter.encode() for letter in FOLDING]


@cache
def special_names() -> SpecialNames:
    """The special names. Cached."""
    return SpecialNames()


@lru_cache(maxsize=REMEMBERED)
def is_special(name: str) -> bool:
    """Whether a name can have a meaning of its own; as `_fast.c` decides it."""
    names, encoded = special_names(), os.fsencode(name)
    small = bytes(letter + 32 if 65 <= letter <= 90 else letter for letter in encoded)
    return (
        small in names.whole
        or small.startswith(tuple(names.prefixes))
        or small.endswith(tuple(names.suffixes))
        or (not encoded.isascii() and any(one in small for one in names.folding))
    )
