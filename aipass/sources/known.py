"""What the ledger knows of the watched files: turns what was seen into what happened, each thing once.

Live watching and scanning both end here, so it does not matter which of them saw a change first, or whether both did.
Called inside the transaction that records the facts.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from aipass.event import Fact
from aipass.sources.observation import (
    Configured,
    FileVersion,
    Gone,
    Limited,
    Listing,
    Moved,
    ScanEnd,
    Seen,
    Touched,
    Unused,
)

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.sources.observation import Observation

SOURCE = "filesystem"
#: Of so many files it is known that they were told to be ignored.
MOST_HIDDEN = 100_000
#: So many files are told one by one when they are moved with their folders, within so many seconds; the fence allows 5,000 at once.
MOST_CARRIED, CARRIED_S = 20_000, 60.0
#: Each file that comes there is somebody's task.
DROPS = frozenset(("inbox", "plans"))


class Writers(Protocol):
    """Who wrote what: of `Attribution`."""

    def by(self, path: str) -> int | None:
        """The run that made a path what it is now; None where nobody known did."""
        ...

    def last(self, path: str) -> int | None:
        """The live run that acted on a path last, whatever became of that since; None where nobody did, or a run of before."""
        ...


class NoRuns:
    """Nobody is known."""

    def by(self, path: str) -> None:
        """Nobody."""

    def last(self, path: str) -> None:
        """Nobody."""


class Known:
    """The `files` table, and the rules by which an observation becomes facts."""

    def __init__(self, ledger: Ledger, runs: Writers | None = None) -> None:
        self._ledger, self._runs = ledger, runs or NoRuns()
        #: By run: when it has moved folders, and how many files with each.
        self._carried: dict[int, deque[tuple[float, int]]] = {}
        #: Files that are ignored by now, and were not; they are known all the same.
        self._hidden: set[str] = set()

    def settle(self, seen: Observation) -> list[Fact]:
        """The facts that an observation amounts to: none where the ledger knew it already."""
        facts = self._settle(seen)
        if getattr(seen, "git", False):
            return _by_git(facts)
        if isinstance(seen, Seen | Moved | Gone) and seen.back and self._runs.by(_place(seen)) is None:
            return _by_git(facts)
        return facts

    def _settle(self, seen: Observation) -> list[Fact]:
        match seen:
            case Seen():
                return self._seen(seen)
            case Touched():
                return self._touched(seen)
            case Gone():
                return self._gone(seen)
            case Moved():
                return self._moved(seen)
            case Listing():
                return self._listing(seen)
            case ScanEnd():
                return self._scan_end(seen)
            case Configured():
                return []
            case Unused():
                return [Fact("watch.unused", SOURCE, path=seen.path, detail={"reason": seen.reason})]
            case Limited():
                return [
                    Fact(
                        "watch.limited",
                        SOURCE,
                        detail={"limit": seen.limit, "polled": seen.polled, "remedy": seen.remedy},
                    )
                ]

    def forget(self, top: str) -> None:
        """Know nothing below a folder any more, so that the next scan tells all that is there."""
        for folder, name, *_ in self._below(top):
            self._ledger.run("drop_file", (folder, name))

    def forget_told(self) -> None:
        """What was told in a transaction that failed is not on record: it may be told again."""
        self._hidden.clear()
        self._carried.clear()

    def forget_file(self, path: str) -> None:
        """The same of one file."""
        self._ledger.run("drop_file", _key(path))

    def _seen(self, seen: Seen) -> list[Fact]:
        key = _key(seen.path)
        row = self._ledger.one("file", key)
        known = None if row is None else tuple(row)
        if (
            known is not None
            and seen.complete
            and known[:3] == seen.identity
            and _is_later(seen.changed, known[3])
        ):
            # Written and closed, with the size and the time of before: `touch -r`, `rsync -t`, whoever wants to hide it.
            self._put(key, seen)
            return [_fact("file.changed", seen), _fact("file.closed", seen, identity=str(seen.identity))]
        return self._compare(seen, key, known)

    def _put(self, key: tuple[bytes, bytes], seen: Seen | Touched) -> None:
        self._ledger.run("put_file", (*key, *seen.identity, seen.changed))

    def _touched(self, seen: Touched) -> list[Fact]:
        """Its time was set, as `cp -p`, `scp -p` and `unzip` do after closing: the same version, known by its new time from here on."""
        key = _key(seen.path)
        row = self._ledger.one("file", key)
        if (
            row is not None
            and tuple(row)[:2] == seen.identity[:2]
            and tuple(row)[2:] != (seen.identity.mtime, seen.changed)
        ):
            self._put(key, seen)
        return []

    def _compare(self, seen: Seen, key: tuple[bytes, bytes], known: tuple[Any, ...] | None) -> list[Fact]:
        if seen.type != "file":
            if known is not None and known[0] is not None:
                return []
            self._put(key, seen)
            return [_fact("file.created", seen, type=seen.type)]
        if not seen.complete:
            if known is not None:
                return []
            self._ledger.run("put_file", (*key, None, None, None, None))
            return [_fact("file.created", seen)]
        if known is not None and known[:3] == seen.identity:
            return []
        self._put(key, seen)
        if known is not None and known[1:3] == seen.identity[1:]:
            # The same size and the same nanosecond: a copy that took its place, as at a hand-over.
            return []
        facts = (
            [_fact("file.created", seen)]
            if known is None
            else [_fact("file.changed", seen)]
            if known[0] is not None
            else []
        )
        return [*facts, _fact("file.closed", seen, identity=str(seen.identity))]

    def _gone(self, seen: Gone) -> list[Fact]:
        if seen.folder:
            return [fact for folder, name, *_ in self._below(seen.path) for fact in self._drop(folder, name)]
        return self._drop(*_key(seen.path))

    def _drop(self, folder: bytes, name: bytes) -> list[Fact]:
        if not self._ledger.run("drop_file", (folder, name)):
            return []
        return [Fact("file.deleted", SOURCE, path=_path(folder, name))]

    def _drop_listed(self, folder: bytes, name: bytes, removed: frozenset[str]) -> list[Fact]:
        facts = self._drop(folder, name)
        return _by_git(facts) if _path(folder, name) in removed else facts

    def _moved(self, seen: Moved) -> list[Fact]:
        if seen.folder:
            return self._moved_folder(seen)
        assert seen.identity is not None
        target = Seen(seen.new, seen.identity, complete=True, changed=seen.changed)
        key = _key(seen.new)
        there = self._ledger.one("file", key)
        known = None if there is None else tuple(there)
        if not self._ledger.run("drop_file", _key(seen.old)):
            # Nobody told of the old name: a file that was ignored, or left alone until now.
            return self._compare(target, key, known)
        self._put(key, target)
        moved = Fact(
            "file.moved", SOURCE, path=seen.new, detail={"from": seen.old, "size": seen.identity.size}
        )
        changed = [_fact("file.changed", target)] if known is not None and known[0] is not None else []
        return [moved, *changed, _fact("file.closed", target, identity=str(seen.identity))]

    def _moved_folder(self, seen: Moved) -> list[Fact]:
        facts = []
        old, new = os.fsencode(seen.old), os.fsencode(seen.new)
        below = self._below(seen.old)
        is_storm = self._is_storm(seen, [_path(folder, name) for folder, name, *_ in below])
        for folder, name, ino, size, mtime, changed in below:
            target = new + folder[len(old) :]
            path = _path(target, name)
            self._ledger.run("drop_file", (folder, name))
            self._ledger.run("put_file", (target, name, ino, size, mtime, changed))
            if is_storm:
                continue
            facts.append(Fact("file.moved", SOURCE, path=path, detail={"from": _path(folder, name)}))
            if ino is not None:
                # Renamed into place is complete, with its folder as well as alone.
                there = Seen(path, FileVersion(ino, size, mtime), complete=True)
                facts.append(_fact("file.closed", there, identity=str(there.identity)))
        if is_storm:
            # A program that renames large folders to and fro must not fill the log: the folder's move is told, and how many files that is.
            detail = {"from": seen.old, "folder": True, "files": len(below)}
            facts.append(Fact("file.moved", SOURCE, path=seen.new, detail=detail))
        return facts

    def _is_storm(self, seen: Moved, files: list[str]) -> bool:
        """Whether a run has moved more files with their folders than are told one by one."""
        # A run's journal names the files, by the old name and the new.
        run = self._runs.last(files[0]) if files else None
        if run is None or DROPS & {path.partition("/")[0] for path in (seen.old, seen.new)}:
            return False
        now = time.monotonic()
        for other in [one for one, moved in self._carried.items() if moved[-1][0] < now - CARRIED_S]:
            del self._carried[other]
        carried = self._carried.setdefault(run, deque())
        while carried and carried[0][0] < now - CARRIED_S:
            carried.popleft()
        # One move alone is told whole, however large.
        if carried and sum(number for _, number in carried) + len(files) > MOST_CARRIED:
            return True
        carried.append((now, len(files)))
        return False

    def _listing(self, seen: Listing) -> list[Fact]:
        folder = os.fsencode(seen.folder)
        known = {
            row["name"]: (row["ino"], row["size"], row["mtime"], row["changed"])
            for row in self._ledger.all("files_in", (folder,))
        }
        facts: list[Fact] = []
        for entry in seen.entries:
            key = _key(entry.path)
            before = known.pop(key[1], None)
            self._hidden.discard(entry.path)
            told = self._compare(entry, key, before)
            if entry.git:
                told = _by_git(told)
            # Other rules of what is ignored show it for the first time: it has not come, unless a run is known to have made it.
            was_there = (
                before is None and os.fsdecode(key[1]) in seen.shown and self._runs.by(entry.path) is None
            )
            facts += [] if was_there else told
        hidden = []
        for name in known:
            if os.fsdecode(name) in seen.apart:
                continue
            if os.fsdecode(name) in seen.hidden:
                # It is there: what becomes of it is told when it is watched again.
                hidden.append(_path(folder, name))
                continue
            facts += self._drop_listed(folder, name, seen.removed)
        if seen.quiet or seen.first or seen.ignoring:
            facts += self._newly_hidden(hidden, is_news=seen.ignoring)
        return [] if seen.quiet else facts

    def _newly_hidden(self, paths: list[str], *, is_news: bool) -> list[Fact]:
        """Who ignores a file that was watched hides what becomes of it: that is told, once as long as it is so.

        Only the scan for what rules have changed tells it; another that comes before takes nothing from that.
        """
        new = [path for path in paths if path not in self._hidden]
        if len(self._hidden) + len(new) > MOST_HIDDEN:
            self._hidden.clear()
        self._hidden.update(new)
        if not new or not is_news:
            return []
        return [Fact("watch.hidden", SOURCE, path=min(new), detail={"files": len(new)})]

    def _scan_end(self, seen: ScanEnd) -> list[Fact]:
        facts: list[Fact] = []
        top = os.fsencode(seen.top)
        here = {os.fsencode(folder) for folder in seen.folders}
        away = {os.fsencode(folder) for folder in seen.hidden}
        hidden: list[str] = []
        for (folder,) in self._ledger.all("known_dirs"):
            below = not top or folder == top or folder.startswith(top + b"/")
            if below and folder not in here:
                if _is_in(folder, away):
                    hidden += [_path(folder, row["name"]) for row in self._ledger.all("files_in", (folder,))]
                    continue
                for row in self._ledger.all("files_in", (folder,)):
                    facts += self._drop_listed(folder, row["name"], seen.removed)
        if seen.reason in {"start", "ignore"}:
            facts += self._newly_hidden(hidden, is_news=seen.reason == "ignore")
        if seen.reason == "overflow":
            facts.append(Fact("watch.overflow", SOURCE, detail={"folders": len(here)}))
        return facts

    def _below(self, top: str) -> list[Any]:
        folder = os.fsencode(top)
        if not folder:
            return self._ledger.all("all_files")
        return self._ledger.all("files_below", {"dir": folder, "low": folder + b"/", "high": folder + b"0"})


def _place(seen: Seen | Moved | Gone) -> str:
    return seen.new if isinstance(seen, Moved) else seen.path


def _is_in(folder: bytes, tops: set[bytes]) -> bool:
    while folder:
        if folder in tops:
            return True
        folder = folder.rpartition(b"/")[0]
    return False


def _is_later(now: int | None, then: int | None) -> bool:
    return now is not None and then is not None and now > then


def _by_git(facts: list[Fact]) -> list[Fact]:
    return [replace(fact, detail={**fact.detail, "git": True}) for fact in facts]


def _fact(kind: str, seen: Seen, **more: str) -> Fact:
    return Fact(kind, SOURCE, path=seen.path, detail={"size": seen.identity.size, **more})


def _key(path: str) -> tuple[bytes, bytes]:
    folder, _, name = os.fsencode(path).rpartition(b"/")
    return folder, name


def _path(folder: bytes, name: bytes) -> str:
    return os.fsdecode(folder + b"/" + name if folder else name)
