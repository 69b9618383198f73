"""The comparison of observations with the ledger's `files` table: it turns observations into facts, each change once.

Live watching and scans both end here, so a change that both saw is recorded once (idempotence). The engine calls it inside the
transaction that records the facts.
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
#: The most files that are remembered as reported by `watch.hidden`; beyond that the set is emptied, and one may be reported again.
MOST_HIDDEN = 100_000
#: A run that moves more files with their folders within CARRIED_S seconds gets one event per folder; the fence allows 5,000 files in one move.
MOST_CARRIED, CARRIED_S = 20_000, 60.0
#: Folders in which each new file is a task: their files always get their own events.
DROPS = frozenset(("inbox", "plans"))


class Writers(Protocol):
    """The authors of files, as `Attribution` knows them."""

    def by(self, path: str) -> int | None:
        """Return the run that made the current version of a path; None where no known run did."""
        ...

    def last(self, path: str) -> int | None:
        """Return the live run that acted on a path last, even where another program changed it since; None where no live run did."""
        ...


class NoRuns:
    """No author of any file is known; for a ledger without runs."""

    def by(self, path: str) -> None:
        """Return None for every path."""

    def last(self, path: str) -> None:
        """Return None for every path."""


class Known:
    """Owns the `files` table. Used in the engine's thread, inside a transaction."""

    def __init__(self, ledger: Ledger, runs: Writers | None = None) -> None:
        self._ledger, self._runs = ledger, runs or NoRuns()
        #: By run: the time of each move of a folder, and how many files it moved.
        self._carried: dict[int, deque[tuple[float, int]]] = {}
        #: Files that were watched and are ignored now; they stay in the table.
        self._hidden: set[str] = set()

    def settle(self, seen: Observation) -> list[Fact]:
        """Return the facts of an observation and update the table; no facts where the ledger knew it already."""
        facts = self._settle(seen)
        if getattr(seen, "git", False):
            return _by_git(facts)
        # Only the engine knows runs: a run that restores a file by hand has written it, even with the same content.
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
        """Remove all files below a folder from the table, so that the next scan reports them as new."""
        for folder, name, *_ in self._below(top):
            self._ledger.run("drop_file", (folder, name))

    def forget_told(self) -> None:
        """Forget which notices were given; call it after a transaction failed."""
        # The ledger has no record of the events of that transaction, so they must be possible again.
        self._hidden.clear()
        self._carried.clear()

    def forget_file(self, path: str) -> None:
        """Remove one file from the table, so that the next observation reports it as new."""
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
            # Written with the same size and time: `touch -r`, `rsync -t`, or a program that hides its write. A program cannot set the ctime.
            self._put(key, seen)
            return [_fact("file.changed", seen), _fact("file.closed", seen, identity=str(seen.identity))]
        return self._compare(seen, key, known)

    def _put(self, key: tuple[bytes, bytes], seen: Seen | Touched) -> None:
        self._ledger.run("put_file", (*key, *seen.identity, seen.changed))

    def _touched(self, seen: Touched) -> list[Fact]:
        """Store the new time of a file whose time was set: it is the same version, so there is no event."""
        # `cp -p`, `scp -p` and `unzip` set the time after the close; without this the next scan would report a change.
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
            # Without an identity: the version counts only when the file is complete.
            self._ledger.run("put_file", (*key, None, None, None, None))
            return [_fact("file.created", seen)]
        if known is not None and known[:3] == seen.identity:
            return []
        self._put(key, seen)
        if known is not None and known[1:3] == seen.identity[1:]:
            # The same size and the same nanosecond: an identical copy replaced the file, as at the hand-over of a phase.
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
            # The old name has no entry: that file was ignored, or still unfinished.
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
                # A file that was renamed is complete, also when its folder was renamed.
                there = Seen(path, FileVersion(ino, size, mtime), complete=True)
                facts.append(_fact("file.closed", there, identity=str(there.identity)))
        if is_storm:
            # A program that renames large folders again and again must not fill the ledger: one event names the folder and the number of files.
            detail = {"from": seen.old, "folder": True, "files": len(below)}
            facts.append(Fact("file.moved", SOURCE, path=seen.new, detail=detail))
        return facts

    def _is_storm(self, seen: Moved, files: list[str]) -> bool:
        """Whether a run has moved more than MOST_CARRIED files with their folders within CARRIED_S."""
        # Asking for one file is enough: the run's journal names every moved file, by its old and its new name.
        run = self._runs.last(files[0]) if files else None
        if run is None or DROPS & {path.partition("/")[0] for path in (seen.old, seen.new)}:
            return False
        now = time.monotonic()
        for other in [one for one, moved in self._carried.items() if moved[-1][0] < now - CARRIED_S]:
            del self._carried[other]
        carried = self._carried.setdefault(run, deque())
        while carried and carried[0][0] < now - CARRIED_S:
            carried.popleft()
        # A single move gets an event per file, however large it is.
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
            # Changed ignore rules show an old file: it is not new, unless a run is known to have made it.
            was_there = (
                before is None and os.fsdecode(key[1]) in seen.shown and self._runs.by(entry.path) is None
            )
            facts += [] if was_there else told
        hidden = []
        for name in known:
            if os.fsdecode(name) in seen.apart:
                continue
            if os.fsdecode(name) in seen.hidden:
                # The file still exists: its changes are reported when it is watched again.
                hidden.append(_path(folder, name))
                continue
            facts += self._drop_listed(folder, name, seen.removed)
        if seen.quiet or seen.first or seen.ignoring:
            facts += self._newly_hidden(hidden, is_news=seen.ignoring)
        return [] if seen.quiet else facts

    def _newly_hidden(self, paths: list[str], *, is_news: bool) -> list[Fact]:
        """Report files that are newly ignored, once while they stay ignored. `is_news`: the scan was made for changed rules."""
        # Changes of an ignored file cause no events: a rule written by an agent must not hide a watched file silently.
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
