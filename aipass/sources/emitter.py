"""A watchdog emitter that leaves ignored trees unwatched and tells when a file is complete.

watchdog's own inotify emitter watches every folder below a root and holds events back for half a second to pair
renames; this one asks `IgnoreRules` first, pairs renames as they come, and hands over whole batches.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from watchdog.observers.api import EventEmitter

from aipass.git.working import ask_of_files
from aipass.sources import inotify, writers
from aipass.sources.contents import Contents
from aipass.sources.gitwork import GitWork, Moves, is_blob
from aipass.sources.ignore import git_folder, is_worktree
from aipass.sources.observation import (
    Configured,
    Gone,
    Limited,
    Listing,
    Moved,
    ScanEnd,
    Seen,
    Touched,
    Unused,
    changed_of,
    identity_of,
    type_of,
)
from aipass.sources.young import Rested, UnsettledFiles
from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchdog.observers.api import EventQueue, ObservedWatch

    from aipass.sources.ignore import IgnoreRules
    from aipass.sources.observation import FileVersion, Observation

# Folders without a watch are looked at this often: rarely enough to cost nothing, often enough to be noticed.
POLL_S = 2.0
# The second half of a rename follows the first at once; only an event queue cut in two makes it wait.
PAIR_WAIT_MS = 5
BATCH = 500
# A file that was just created is mostly closed at once; its creation waits so long for company, and one commit does.
CREATED_WAIT_MS = 10
# A file older than this at a scan counts as complete without asking the kernel; inboxes are always asked about.
FRESH_S = 60.0
# After what rules show and hide was looked into, so many times as long as that took nobody looks again; of more folders at once, all.
SCAN_SHARE, MOST_TOPS = 10, 20


@dataclass(slots=True)
class WatchContext:
    """What one emitter watches, and whom it tells."""

    root: str
    tell: Callable[[list[Observation]], None]
    ignore: IgnoreRules | None = None
    #: Folders watched before all others, should watches run out.
    first: tuple[str, ...] = ()
    #: Other rules of what is ignored, which were in force until now.
    before: IgnoreRules | None = None
    #: Take note of what is there at the start without telling it, but for `loud`.
    baseline: bool = False
    loud: str = "inbox"
    #: Git's own folder for this tree.
    git: str | None = None
    #: What git did to the tree before was told already; seconds since the epoch.
    since: float = 0.0
    #: Told when a `.git` has come into the tree's own folder.
    git_came: Callable[[], None] = lambda: None
    #: Others may write here without the kernel's telling it: what lies in `loud` is looked at from time to time as well.
    shared: bool = False
    #: Folders deeper than this are not looked into: who may write there makes what he likes of their paths.
    depth: int = 256


class TreeEmitter(EventEmitter):
    """Watches one ground. Everything but `ask_scan` and the counters happens in its own thread."""

    def __init__(
        self,
        event_queue: EventQueue,
        watch: ObservedWatch,
        *,
        grounds: dict[str, WatchContext],
        **options: object,
    ) -> None:
        super().__init__(event_queue, watch, **options)  # type: ignore[arg-type]
        self._ground = grounds[str(watch.path)]
        self._root = os.fsencode(self._ground.root)
        self._inotify: inotify.Inotify | None = None
        self._folder_of: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}
        self._polled: set[str] = set()
        self._git = GitWork(self._ground.root, self._ground.git)
        self._told_limit = False
        self._asked: deque[tuple[str, str]] = deque()
        self._wake_in, self._wake_out = os.pipe()
        self._lock, self._is_over = threading.Lock(), False
        self._batch: list[Observation] = []
        self._later: dict[str, float] = {}
        #: Folders that are known not to be ignored, for as long as one scan or one round goes on.
        self._shown: set[str] = set()
        #: Whether folders were ignored by the rules of before, as long as one scan goes on.
        self._hidden_before: dict[str, bool] = {}
        self._young = UnsettledFiles()
        self._contents = Contents()
        #: What git did while nobody looked, for as long as a scan goes on.
        self._moves: Moves = {}
        self._removed: frozenset[str] = frozenset()
        #: What was ignored before a .gitignore was written, until that is looked into.
        self._old_rules: IgnoreRules | None = None
        #: Folders whose rules have changed, and from when on what they show and hide may be looked into.
        self._rules_due: set[str] = set()
        self._rules_at = 0.0
        #: Since when nobody looked what git did.
        self._since = self._ground.since
        self._next_poll = 0.0
        self._resting: dict[str, tuple[FileVersion, float]] = {}
        #: Set once what was there at the start has been told.
        self.settled = threading.Event()

    def tell_unused(self, path: str, reason: str) -> None:
        """Tell of a .gitignore that is not used; asked by `IgnoreRules` in this thread."""
        self._tell(Unused(path, reason))

    # -- asked from other threads ----------------------------------------------------------------------------------

    def ask_scan(self, top: str, reason: str) -> None:
        """Have `top` and all below it scanned soon, and compared."""
        self._ask_scan(top, reason)
        self._wake()

    def _ask_scan(self, top: str, reason: str) -> None:
        """One that waits already is as good."""
        if (top, reason) not in self._asked:
            self._asked.append((top, reason))

    def counts(self) -> tuple[int, int]:
        """How many folders are watched, and how many polled."""
        return len(self._watch_of), len(self._polled)

    def _wake(self) -> None:
        with self._lock:
            if self._is_over:
                return  # its number may be another file's by now
            try:
                os.write(self._wake_out, b"w")
            except OSError:
                pass  # it is awake already

    # -- watchdog's life cycle -------------------------------------------------------------------------------------

    def on_thread_start(self) -> None:
        """Begin to watch; called by watchdog before its thread runs."""
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        if sys.platform == "linux":
            try:
                self._inotify = inotify.Inotify()
            except OSError:
                self._inotify = None
        self._git.start(self._inotify)
        self._asked.append(("", "start"))

    def _found_repository(self, folder: str, *, came: bool) -> None:
        """A `.git` lies in a folder: another worktree is left alone, a repository's own git is watched too. `came`: just now."""
        if self._ground.ignore is None:
            return
        self._shown.clear()
        absolute = Path(self._absolute(folder))
        if folder and is_worktree(absolute):
            self._ask_scan("", "ignore")
        elif (found := git_folder(absolute)) is not None:
            before = self._git.inner()
            self._git.watch(folder, str(found))
            if (inner := self._git.inner()) != before:
                self._tell(Configured(inner))
            if came and not folder:
                self._ground.git_came()

    def on_thread_stop(self) -> None:
        """Wake the thread, so that it sees that it shall end."""
        self._wake()

    def run(self) -> None:
        """Look, tell, wait; until stopped."""
        try:
            super().run()
        finally:
            if self._inotify is not None:
                self._inotify.close()
            with self._lock:
                self._is_over = True
                os.close(self._wake_in)
                os.close(self._wake_out)

    def queue_events(self, timeout: float) -> None:
        """One round: whatever was asked for, whatever the kernel says; then wait."""
        del timeout
        self._shown.clear()
        while self._asked:
            top, reason = self._asked.popleft()
            self._scan(top, reason)
            if reason == "start":
                self._flush()
                self._note_unstaged()
                self.settled.set()
        self._flush()
        self._wait()
        if self._inotify is not None:
            self._take(self._inotify.read())
            if self._batch and all(isinstance(seen, Seen) and not seen.complete for seen in self._batch):
                self._wait_for_more(CREATED_WAIT_MS)
                self._take(self._inotify.read())
        self._look_again()
        self._tell_young()
        self._flush()

    def _wait(self) -> None:
        due = [*self._later.values(), *self._young.due()]
        if self._rules_due and not len(self._young):
            due.append(self._rules_at)
        if self._polled or self._ground.shared:
            due.append(self._next_poll)
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify.descriptor, select.POLLIN)
        poll.poll(None if not due else max(0.0, min(due) - time.monotonic()) * 1000)
        try:
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            pass
        if (self._polled or self._ground.shared) and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + POLL_S
            also = {name for name in self._watch_of if self._is_loud(name)} if self._ground.shared else set()
            for folder in sorted(self._polled | also):
                if self._visit(folder, quiet=False, polled=True) is None:
                    self._left(folder, folder=True)

    def _tell(self, seen: Observation, *, git: bool | None = None) -> None:
        """`git`: whether git did it, where that was found out when it happened."""
        if git is None and not isinstance(seen, (ScanEnd, Limited, Unused, Touched, Configured)):
            git = self._git.is_at_work(_place(seen))
        if git and isinstance(seen, Seen | Moved | Gone | Listing):
            seen = replace(seen, git=True)
        elif isinstance(seen, Seen | Moved | Gone) and self._is_back(seen):
            seen = replace(seen, back=True)
        self._batch.append(seen)
        if len(self._batch) >= BATCH:
            self._flush()

    def _is_back(self, seen: Seen | Moved | Gone) -> bool:
        """Whether a file is again as it was told last, or removed again, after git had changed that."""
        path = _place(seen)
        if not self._git.knows("") or self._is_at_once(path):
            return False
        if isinstance(seen, Seen):
            return seen.complete and self._contents.is_back(path, self._absolute(path))
        return not seen.folder and self._contents.is_back(path, self._absolute(path))

    def _note_unstaged(self) -> None:
        """What was changed before anybody looked may be taken away, and come back, as what is saved from now on."""
        if self._git.knows(""):
            paths = ask_of_files(Path(self._ground.root), "diff-files", "-z", "--name-only", "--relative")
            self._contents.note((path, self._absolute(path)) for path in paths if path)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._ground.tell(batch)

    # -- scanning --------------------------------------------------------------------------------------------------

    def _scan(self, top: str, reason: str) -> None:
        """Watch and list `top` and all below it; at the end of a whole scan say which folders there are."""
        begun = time.monotonic()
        self._shown.clear()
        self._hidden_before.clear()
        if reason != "new":
            # What waits is told by itself, and before.
            self._young.hurry()
            self._tell_young()
        if reason == "ignore" and self._ground.ignore is not None:
            rules, self._ground.before = self._ground.before, None
            if self._old_rules is None:
                self._old_rules = rules or self._ground.ignore.forget()
        if reason in {"start", "overflow", "asked"} and not (reason == "start" and self._ground.baseline):
            looked, self._moves = time.time(), self._git.moves(self._since)
            self._since = looked
            self._removed = frozenset(path for path, blob in self._moves.items() if blob is None)
        before = set(self._watch_of) | self._polled
        folders: set[str] = set()
        hidden: set[str] = set()
        waiting = [top] if top else ["", *reversed(self._ground.first)]
        while waiting:
            folder = waiting.pop()
            if folder in folders:
                continue
            if folder and self._is_ignored(folder):
                hidden.add(folder)
                continue
            loud = self._is_loud(folder)
            quiet = reason == "start" and self._ground.baseline and not loud
            below = self._visit(
                folder, quiet=quiet, ignoring=reason == "ignore" and not loud, new=reason == "new"
            )
            if below is None:
                if folder and self._is_ignored(folder):
                    hidden.add(folder)
            else:
                folders.add(folder)
                waiting += (inner for inner in below if self._is_near(inner))
        if reason != "new":
            self._tell(ScanEnd(top, frozenset(folders), reason, self._removed, frozenset(hidden)))
            self._unwatch({one for one in before - folders if not top or f"{one}/".startswith(f"{top}/")})
        self._moves, self._removed = {}, frozenset()
        if reason == "ignore":
            now = time.monotonic()
            # Who writes rules again and again makes nobody wait: a large tree is looked into the more rarely.
            self._rules_at = max(self._rules_at, now) + SCAN_SHARE * (now - begun)
            if not any(other == "ignore" for _, other in self._asked):
                self._old_rules = None
        self._tell_limit()

    def _visit(
        self, folder: str, *, quiet: bool, polled: bool = False, ignoring: bool = False, new: bool = False
    ) -> list[str] | None:
        """Watch one folder, then list it; returns its folders, None where it is gone."""
        try:
            # Held: an agent may put a link in the place of any folder on the way while this is done.
            handle = held.open_at(self._absolute(folder), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            if not polled and not self._add_watch(folder, handle):
                return None
            return self._list(folder, handle, quiet=quiet, polled=polled, ignoring=ignoring, new=new)
        finally:
            os.close(handle)

    def _list(
        self, folder: str, handle: int, *, quiet: bool, polled: bool, ignoring: bool, new: bool
    ) -> list[str] | None:
        entries: list[Seen] = []
        below: list[str] = []
        hidden: set[str] = set()
        shown: set[str] = set()
        apart: set[str] = set()
        fresh: list[str] = []
        rests = new and not self._is_at_once(self._join(folder, ""))
        known = self._git.knows(folder)
        special = self._is_loud(folder) or self._ground.ignore is None
        try:
            with os.scandir(handle) as found:
                for entry in found:
                    path = self._join(folder, entry.name)
                    if entry.name == ".git":
                        self._found_repository(folder, came=False)
                    if entry.is_dir(follow_symlinks=False):
                        below.append(path)
                    elif self._is_ignored_file(path):
                        hidden.add(entry.name)
                    elif path in self._young:
                        apart.add(entry.name)
                    elif rests and entry.is_file(follow_symlinks=False):
                        fresh.append(path)
                    elif special or entry.is_file(follow_symlinks=False):
                        seen = self._look(path, found=not quiet)
                        if seen is not None:
                            if not new and self._was_hidden(folder, path):
                                shown.add(entry.name)
                            entries.append(
                                replace(seen, git=True) if self._is_as_moved(path, self._moves) else seen
                            )
        except OSError:
            return None
        if folder and self._is_ignored(folder):
            return None  # another worktree, as was seen only now
        # A repository that has just come was brought by git.
        came = not known and bool(folder) and self._git.knows(folder)
        for path in fresh:
            apart.add(path.rpartition("/")[2])
            self._young.write(path, new=True, closed=False, git=came or self._git.is_at_work(path))
        self._tell(
            Listing(
                folder,
                tuple(entries),
                quiet,
                ignoring,
                first=not self.settled.is_set(),
                git=came,
                removed=self._removed,
                hidden=frozenset(hidden),
                apart=frozenset(apart),
                shown=frozenset(shown),
            )
        )
        if polled:
            for path in filter(self._is_near, below):
                if path not in self._watch_of and path not in self._polled and not self._is_ignored(path):
                    self._scan(path, "new")
        return below

    def _was_hidden(self, folder: str, path: str) -> bool:
        """Whether a file was ignored by the rules of before; what is so of its folder is found out once a scan."""
        old = self._old_rules
        if old is None:
            return False
        unknown = []
        while folder and folder not in self._hidden_before:
            unknown.append(folder)
            folder = folder.rpartition("/")[0]
        hidden = self._hidden_before.get(folder, False)
        for one in reversed(unknown):
            hidden = self._hidden_before[one] = hidden or old.folder(one)
        return hidden or old.file(path)

    def _add_watch(self, folder: str, handle: int) -> bool:
        if folder in self._polled:
            return True
        if self._inotify is None:
            self._poll(folder)
            return True
        try:
            watch = self._inotify.add(inotify.by_descriptor(handle))
        except inotify.WatchLimitError:
            self._poll(folder)
            return True
        except OSError:
            return False
        old = self._folder_of.get(watch)
        if old is not None and old != folder and self._watch_of.get(old) == watch:
            del self._watch_of[old]
        self._folder_of[watch] = folder
        self._watch_of[folder] = watch
        return True

    def _poll(self, folder: str) -> None:
        if not self._polled:
            self._next_poll = time.monotonic() + POLL_S
        self._polled.add(folder)

    def _tell_limit(self) -> None:
        if not self._polled or self._told_limit:
            return
        self._told_limit = True
        if self._inotify is not None:
            limit = "fs.inotify.max_user_watches"
            remedy = f"raise it: `sudo sysctl {limit}=1048576`, and put it in /etc/sysctl.d/ to keep it; or ignore more with [watch] ignore"
        elif sys.platform == "linux":
            limit = "fs.inotify.max_user_instances"
            remedy = f"raise it: `sudo sysctl {limit}=1024`, then restart the engine"
        else:
            limit, remedy = "no inotify on this system", "nothing to do: the tree is polled"
        self._tell(Limited(limit, len(self._polled), remedy))

    def _unwatch(self, folders: set[str]) -> None:
        for folder in folders:
            self._polled.discard(folder)
            watch = self._watch_of.pop(folder, None)
            if watch is not None and self._inotify is not None:
                self._folder_of.pop(watch, None)
                self._inotify.remove(watch)

    # -- the kernel's events ---------------------------------------------------------------------------------------

    def _take(self, events: list[inotify.Raw]) -> None:
        """Turn a batch of the kernel's events into observations, pairing renames."""
        pending: dict[int, tuple[str, bool]] = {}
        patience = 3
        while events:
            for raw in events:
                if raw.mask & inotify.IN_Q_OVERFLOW:
                    self._forget_rules("")
                    self._ask_scan("", "overflow")
                    self._git.look_anew()
                    continue
                if self._git.take(raw):
                    self._young.wait_for_log()
                elif len(self._young) and (moved := self._git.has_moved(raw)):
                    # What another git wrote just before, whichever it was.
                    self._young.are_by_git(
                        partial(self._is_as_moved, moved=moved),
                        {path for path in moved if moved[path] is None},
                    )
                if self._git.is_configured(raw):
                    self._tell(Configured(self._git.inner()))
                if self._git.has_worktrees(raw):
                    self._ground.git_came()
                if (came := self._git.has_come(raw)) is not None:
                    self._git.watch("", came)
                    self._ground.git_came()
                # An agent can say that a watched folder is git's own: it is watched all the same.
                self._take_one(raw, pending)
            events = []
            if pending and patience and self._inotify is not None:
                patience -= 1
                self._wait_for_more(PAIR_WAIT_MS)
                events = self._inotify.read()
        for path, folder in pending.values():
            self._leave(path, folder)

    def _wait_for_more(self, milliseconds: int) -> None:
        assert self._inotify is not None
        poll = select.poll()
        poll.register(self._inotify.descriptor, select.POLLIN)
        poll.poll(milliseconds)

    def _take_one(self, raw: inotify.Raw, pending: dict[int, tuple[str, bool]]) -> None:
        folder = self._folder_of.get(raw.watch)
        if folder is None:
            return
        if raw.mask & (inotify.IN_IGNORED | inotify.IN_DELETE_SELF):
            if raw.mask & inotify.IN_IGNORED:
                self._folder_of.pop(raw.watch, None)
                if self._watch_of.get(folder) == raw.watch:
                    del self._watch_of[folder]
            return
        path = self._join(folder, os.fsdecode(raw.name))
        self._take_rules(raw, folder, path)
        if raw.mask & inotify.IN_MOVED_FROM:
            pending[raw.cookie] = path, bool(raw.mask & inotify.IN_ISDIR)
        elif raw.mask & inotify.IN_ISDIR:
            self._take_folder(raw, path, pending)
        else:
            self._take_file(raw, path, pending)

    def _forget_rules(self, folder: str) -> None:
        """What is written from now on is under other rules of a folder; what they show and hide is looked into when all rests."""
        if self._ground.ignore is not None:
            self._shown.clear()
            before = self._ground.ignore.forget()
            self._old_rules = self._old_rules or before
            self._rules_due.add(folder)

    def _take_rules(self, raw: inotify.Raw, folder: str, path: str) -> None:
        """Whatever an event says of rules: a .gitignore that was written, came or went, alone or with its folder."""
        ignore = self._ground.ignore
        if ignore is None:
            return
        if not raw.mask & inotify.IN_ISDIR:
            if raw.name == b".gitignore" and not raw.mask & (inotify.IN_CREATE | inotify.IN_ATTRIB):
                self._forget_rules(folder)
        elif raw.mask & inotify.IN_DELETE:
            ignore.drop(path)
        elif (raw.mask & inotify.IN_MOVED_FROM and ignore.has_rules(path)) or (
            raw.mask & (inotify.IN_MOVED_TO | inotify.IN_CREATE) and ignore.is_old(path)
        ):
            self._forget_rules(path)

    def _is_near(self, folder: str) -> bool:
        return folder.count("/") < self._ground.depth

    def _take_folder(self, raw: inotify.Raw, path: str, pending: dict[int, tuple[str, bool]]) -> None:
        if not self._is_near(path):
            return
        if raw.mask & inotify.IN_MOVED_TO and len(self._young):
            # What waits may lie in it, and has other names from here on.
            self._young.hurry()
            self._tell_young()
        if raw.name == b".git" and raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            self._found_repository(path.rpartition("/")[0], came=True)
        if raw.mask & inotify.IN_MOVED_TO and raw.cookie in pending:
            old, _ = pending.pop(raw.cookie)
            was_ignored = self._is_ignored(old)
            if self._is_ignored(path):
                self._left(old, folder=True)
                return
            if not was_ignored:
                self._rename_watches(old, path)
                self._tell(Moved(old, path, folder=True))
            self._scan(path, "new")
        elif raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            if not self._is_ignored(path):
                self._scan(path, "new")
        elif raw.mask & inotify.IN_DELETE:
            # It was empty: what was in it has left before.
            self._left(path, folder=True, alone=True)

    def _take_file(self, raw: inotify.Raw, path: str, pending: dict[int, tuple[str, bool]]) -> None:
        if raw.name == b".git" and raw.mask & (inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO):
            self._found_repository(path.rpartition("/")[0], came=True)
        old = pending.pop(raw.cookie, None) if raw.mask & inotify.IN_MOVED_TO else None
        if raw.mask & inotify.IN_ATTRIB:
            self._young.touch(path)
            return
        self._young.is_written(path)
        if self._is_young(raw, path):
            return
        if self._is_ignored_file(path):
            if old is not None:
                self._leave(*old)
            return
        if raw.mask & inotify.IN_DELETE:
            self._leave(path, folder=False)
            return
        if old is not None and not self._is_at_once(path):
            self._young.move(old[0], path, git=self._git.is_at_work(path))
            return
        seen = self._look(
            path, found=bool(raw.mask & inotify.IN_CREATE), closed=bool(raw.mask & inotify.IN_CLOSE_WRITE)
        )
        if seen is None:
            if old is not None:
                self._left(*old)
        elif old is not None and seen.type == "file":
            self._tell(Moved(old[0], path, folder=False, identity=seen.identity, changed=seen.changed))
        else:
            self._tell(seen)

    def _is_at_once(self, path: str) -> bool:
        """Whether what happens there is told as it comes: people wait for it."""
        return self._ground.ignore is None or self._is_loud(path) or path.partition("/")[0] == "plans"

    def _is_loud(self, path: str) -> bool:
        """Whether it lies where each file is somebody's task."""
        return path.partition("/")[0] == self._ground.loud

    def _is_young(self, raw: inotify.Raw, path: str) -> bool:
        """Whether a file was written a moment ago and is not told yet: it may only be what another one becomes."""
        if self._is_at_once(path) or raw.mask & (inotify.IN_DELETE | inotify.IN_MOVED_TO):
            return False
        if path not in self._young and self._is_ignored_file(path):
            return True
        by_git = self._git.is_at_work(path)
        if by_git:
            self._contents.take(path)
        self._young.write(
            path,
            new=bool(raw.mask & inotify.IN_CREATE),
            closed=bool(raw.mask & inotify.IN_CLOSE_WRITE),
            git=by_git,
        )
        return True

    def _tell_young(self) -> None:
        for path in self._young.touched():
            self._touched(path)
        if (rested := self._young.take()) is not None:
            self._tell_rested(rested)
        if self._rules_due and not len(self._young) and time.monotonic() >= self._rules_at:
            tops, self._rules_due = self._rules_due, set()
            for top in {""} if len(tops) > MOST_TOPS else tops:
                self._ask_scan(top, "ignore")

    def _tell_rested(self, rested: Rested) -> None:
        for path, other, git, written in rested.back:
            if not written:
                self._touched(path)  # its name was set, as a mode is
            for place in (path, other):
                if place not in rested.written and (there := self._look(place, found=True)) is not None:
                    self._tell(there, git=git)
        taken = {new for _, new, _ in rested.moved}
        for old, new, git in rested.moved:
            self._tell_moved(old, new, git, is_taken=old in taken or old in rested.written)
        for path, git in rested.exchanged:
            if (there := self._look(path, found=True)) is not None:
                self._tell(there, git=git)
        for path, git in rested.left:
            self._left(path, folder=False, git=git)
        for path, waiting in rested.written.items():
            # It was closed, whoever may have opened it again by now.
            seen = self._look(path, found=not waiting.closed)
            if seen is not None and not self._is_ignored_file(path):
                self._tell(seen, git=waiting.git)

    def _tell_moved(self, old: str, new: str, git: bool, *, is_taken: bool) -> None:
        """`is_taken`: something else has come to the old name, which is told by itself."""
        seen = self._look(new, found=False)
        if seen is None or seen.type != "file" or self._is_ignored_file(new):
            self._left(old, folder=False, git=git)
            return
        self._tell(Moved(old, new, folder=False, identity=seen.identity, changed=seen.changed), git=git)
        if not is_taken and (there := self._look(old, found=True)) is not None:
            self._tell(there, git=git)  # something has come in its place

    def _is_as_moved(self, path: str, moved: Moves) -> bool:
        blob = moved.get(path)
        return blob is not None and is_blob(self._absolute(path), blob)

    def _touched(self, path: str) -> None:
        if path in self._young or self._is_ignored_file(path):
            return
        try:
            status = os.lstat(self._absolute(path))
        except OSError:
            return
        # Of one that is just being written the close will say it: what it is until then is nobody's version.
        if type_of(status) == "file" and writers.has_writer(self._absolute(path)) is not True:
            self._tell(Touched(path, identity_of(status), changed_of(status)))

    def _leave(self, path: str, folder: bool) -> None:
        """A file has left its place: to many tools that is how they begin to save it anew."""
        if folder or self._is_at_once(path):
            self._left(path, folder)
        else:
            by_git = self._git.is_at_work(path)
            if by_git:
                self._contents.take(path)
            self._young.leave(path, git=by_git)

    def _left(self, path: str, folder: bool, *, alone: bool = False, git: bool | None = None) -> None:
        """Something is no longer at `path`, unless something is there again: then that is told instead."""
        if os.path.lexists(self._absolute(path)):
            return
        if folder and alone:
            self._unwatch({path})
        elif folder:
            self._unwatch(
                {
                    name
                    for name in (*self._watch_of, *self._polled)
                    if name == path or name.startswith(path + "/")
                }
            )
        if folder or not self._is_ignored_file(path):
            self._tell(Gone(path, folder), git=git if not folder else None)

    def _rename_watches(self, old: str, new: str) -> None:
        if new in self._watch_of:
            # Two folders were exchanged: which watch is whose is found out by looking.
            self._ask_scan(old, "asked")
            self._ask_scan(new, "asked")
            return
        for name in [name for name in self._watch_of if name == old or name.startswith(old + "/")]:
            watch = self._watch_of.pop(name)
            self._watch_of[new + name[len(old) :]] = watch
            self._folder_of[watch] = new + name[len(old) :]
        for name in [name for name in self._polled if name == old or name.startswith(old + "/")]:
            self._polled.discard(name)
            self._polled.add(new + name[len(old) :])

    def _look(self, path: str, *, found: bool, closed: bool = False) -> Seen | None:
        """A file as it is now. `found`: nobody saw it being closed, so the kernel is asked whether it is complete.

        `closed`: somebody has closed it; another may write on (`touch x; slow > x`), and of a drop that is waited for.
        """
        absolute = self._absolute(path)
        try:
            status = os.lstat(absolute)
        except OSError:
            return None
        kind = type_of(status)
        if kind == "folder":
            return None
        if kind != "file":
            inbox = self._ground.ignore is None or self._is_loud(path)
            return Seen(path, identity_of(status), complete=True, type=kind) if inbox else None
        complete = True
        if closed and self._is_loud(path):
            complete = writers.has_writer(absolute) is not True
        if found:
            loud = self._is_loud(path) or self._ground.ignore is None
            fresh = loud or time.time_ns() - status.st_mtime_ns < FRESH_S * 1e9
            complete = not fresh or writers.is_complete(absolute, status.st_mtime_ns)
            if complete and loud and self._ground.shared:
                complete = self._is_at_rest(path, identity_of(status))
            if not complete:
                self._later[path] = time.monotonic() + writers.SETTLED_S
            elif fresh:
                # It may have been written and closed between the first look and the kernel's word.
                try:
                    status = os.lstat(absolute)
                except OSError:
                    return None
        return Seen(path, identity_of(status), complete, changed=changed_of(status))

    def _is_at_rest(self, path: str, now: FileVersion) -> bool:
        """Nobody here can say who writes a file from another side: one that is the same at two looks is complete."""
        before, since = self._resting.get(path, (None, 0.0))
        if before != now:
            self._resting = {
                one: seen for one, seen in self._resting.items() if time.monotonic() - seen[1] < 60
            }
            self._resting[path] = now, time.monotonic()
            return False
        return time.monotonic() - since >= writers.SETTLED_S

    def _look_again(self) -> None:
        """Files that were being written when they were found, in case their close was not seen."""
        now = time.monotonic()
        for path in [path for path, due in self._later.items() if due <= now]:
            del self._later[path]
            seen = self._look(path, found=True)
            if seen is not None:
                self._tell(seen)

    def _is_ignored(self, folder: str) -> bool:
        if self._ground.ignore is None:
            return False
        # What one folder deep down costs may not grow with all that lie above it.
        unknown = [folder]
        while (above := unknown[-1].rpartition("/")[0]) and above not in self._shown:
            unknown.append(above)
        for path in reversed(unknown):
            if self._ground.ignore.folder(path):
                return True
            if path != folder:
                self._shown.add(path)
        return False

    def _is_ignored_file(self, path: str) -> bool:
        return self._ground.ignore is not None and self._ground.ignore.file(path)

    def _absolute(self, path: str) -> str:
        return f"{self._ground.root}/{path}" if path else self._ground.root

    @staticmethod
    def _join(folder: str, name: str) -> str:
        return f"{folder}/{name}" if folder else name


def _place(seen: Observation) -> str:
    """Where in the tree something was seen."""
    match seen:
        case Listing():
            return seen.folder
        case Moved():
            return seen.new
        case Seen() | Gone():
            return seen.path
    return ""
