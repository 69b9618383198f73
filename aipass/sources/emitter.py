"""A watchdog emitter that leaves ignored trees unwatched and reports when a file is complete.

watchdog's own inotify emitter watches every folder below a root and delays events for half a second to pair renames;
this one asks `IgnoreRules` first, pairs renames immediately, and reports whole batches.
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

# How often folders without a watch are polled: rarely enough to cost nothing, often enough that people see no delay.
POLL_S = 2.0
# The second half of a rename follows the first immediately, unless one read of the event queue ended between them.
PAIR_WAIT_MS = 5
# The most observations in one call of `tell`: the engine gets a large scan in parts.
BATCH = 500
# Most new files are closed immediately: a creation waits this long, so that one commit of the ledger records both events.
CREATED_WAIT_MS = 10
# A scan counts a file older than this as complete without asking the kernel, except in the inbox.
FRESH_S = 60.0
# After a scan for changed ignore rules, the next one waits SCAN_SHARE times as long as that scan took. For more than MOST_TOPS folders, one
# scan of the whole tree replaces the single ones.
SCAN_SHARE, MOST_TOPS = 10, 20


@dataclass(slots=True)
class WatchContext:
    """The tree that one emitter watches, with its rules, and the receiver of its observations."""

    root: str
    tell: Callable[[list[Observation]], None]
    ignore: IgnoreRules | None = None
    #: Folders that get a watch before all others, in case the kernel gives too few.
    first: tuple[str, ...] = ()
    #: The ignore rules before a reconfiguration, until the next scan takes them.
    before: IgnoreRules | None = None
    #: Record the files of the start without events, except those in `loud`.
    baseline: bool = False
    loud: str = "inbox"
    #: Git's own folder for this tree; None where there is no repository.
    git: str | None = None
    #: Git's changes up to this time are recorded already; seconds since the epoch.
    since: float = 0.0
    #: Called, in the emitter's thread, when a `.git` has appeared in the tree's own folder.
    git_came: Callable[[], None] = lambda: None
    #: Other machines may write here, and inotify does not report that: the folders of `loud` are polled as well.
    shared: bool = False
    #: Deeper folders are not scanned: a program could otherwise make paths of any length.
    depth: int = 256


class TreeEmitter(EventEmitter):
    """Watches one tree. All methods but `ask_scan` and `counts` run in the emitter's own thread."""

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
        #: Folders known as not ignored; a cache for one scan or one round, because rules may change in between.
        self._shown: set[str] = set()
        #: Whether the old rules ignored a folder; a cache for one scan.
        self._hidden_before: dict[str, bool] = {}
        self._young = UnsettledFiles()
        self._contents = Contents()
        #: Git's changes while no emitter ran; only during a scan.
        self._moves: Moves = {}
        self._removed: frozenset[str] = frozenset()
        #: The rules before a .gitignore was written, until a scan has compared both.
        self._old_rules: IgnoreRules | None = None
        #: Folders whose rules have changed, and the earliest time of the scan for them.
        self._rules_due: set[str] = set()
        self._rules_at = 0.0
        #: Git's log is read up to this time; seconds since the epoch.
        self._since = self._ground.since
        self._next_poll = 0.0
        self._resting: dict[str, tuple[FileVersion, float]] = {}
        #: Set after the observations of the scan at the start are reported.
        self.settled = threading.Event()

    def tell_unused(self, path: str, reason: str) -> None:
        """Report a .gitignore that is not used. `IgnoreRules` calls this in the emitter's thread."""
        self._tell(Unused(path, reason))

    # -- called from other threads ----------------------------------------------------------------------------------

    def ask_scan(self, top: str, reason: str) -> None:
        """Request a scan of `top` and all below it, and return immediately."""
        self._ask_scan(top, reason)
        self._wake()

    def _ask_scan(self, top: str, reason: str) -> None:
        # A scan that waits already will see the same, so a second one would only cost time.
        if (top, reason) not in self._asked:
            self._asked.append((top, reason))

    def counts(self) -> tuple[int, int]:
        """Return how many folders are watched and how many are polled."""
        return len(self._watch_of), len(self._polled)

    def _wake(self) -> None:
        with self._lock:
            if self._is_over:
                return  # the descriptor's number may belong to another file by now
            try:
                os.write(self._wake_out, b"w")
            except OSError:
                pass  # the pipe is full, so the thread is awake already

    # -- watchdog's life cycle -------------------------------------------------------------------------------------

    def on_thread_start(self) -> None:
        """Open inotify and request the scan of the start; watchdog calls this before the thread runs."""
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
        """Handle a `.git` in a folder: ignore another worktree, watch the git folder of a repository. `came`: it has just appeared."""
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
        """Wake the thread, so that it sees the request to end."""
        self._wake()

    def run(self) -> None:
        """Run rounds until watchdog stops the emitter; then close its files."""
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
        """Run one round: first the requested scans, then wait, then the kernel's events. watchdog's `timeout` is not used."""
        del timeout
        self._shown.clear()
        while self._asked:
            top, reason = self._asked.popleft()
            self._scan(top, reason)
            if reason == "start":
                # Before `settled`: who waits for that may expect the observations to be with the engine.
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
        """Add an observation to the batch. `git`: whether git made the change, where that was decided at the time of the change."""
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
        """Whether a file is again as it was last reported, or removed again, after git had changed that."""
        path = _place(seen)
        if not self._git.knows("") or self._is_at_once(path):
            return False
        if isinstance(seen, Seen):
            return seen.complete and self._contents.is_back(path, self._absolute(path))
        return not seen.folder and self._contents.is_back(path, self._absolute(path))

    def _note_unstaged(self) -> None:
        """Remember the files with unstaged changes, as if they were saved now."""
        # A pre-commit hook may remove these changes and restore them: then no event may say that a person saved them.
        if self._git.knows(""):
            paths = ask_of_files(Path(self._ground.root), "diff-files", "-z", "--name-only", "--relative")
            self._contents.note((path, self._absolute(path)) for path in paths if path)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._ground.tell(batch)

    # -- scanning --------------------------------------------------------------------------------------------------

    def _scan(self, top: str, reason: str) -> None:
        """Watch and list `top` and all below it; then, except for reason `new`, report which folders exist."""
        begun = time.monotonic()
        self._shown.clear()
        self._hidden_before.clear()
        if reason != "new":
            # Waiting changes come first: the listing shows their result and would hide how it came about.
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
            # A program that changes rules again and again must not keep this thread busy: the larger the tree, the rarer the scan.
            self._rules_at = max(self._rules_at, now) + SCAN_SHARE * (now - begun)
            if not any(other == "ignore" for _, other in self._asked):
                self._old_rules = None
        self._tell_limit()

    def _visit(
        self, folder: str, *, quiet: bool, polled: bool = False, ignoring: bool = False, new: bool = False
    ) -> list[str] | None:
        """Watch one folder, then list it; returns the folders in it, None where it is gone."""
        try:
            # Held open: an agent may replace any folder of the path by a symbolic link in the middle of this.
            handle = held.open_at(self._absolute(folder), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            # The watch first: a file that appears after the listing must cause an event.
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
            return None  # its `.git`, read just now, says that it is another worktree
        # The files of a repository that has just appeared were written by git (`git clone`).
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
        """Whether the old rules ignored a file; the answers for folders are cached for the scan."""
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
        # The kernel gives one number per folder: here its rename is not read yet, and the number still has the old path.
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
            remedy = f"raise it: `sudo sysctl {limit}=1048576`, and add it to /etc/sysctl.d/ so that it survives a restart; or ignore more folders with [watch] ignore"
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
        """Turn a batch of the kernel's events into observations; the two halves of a rename become one."""
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
                    # A program with its own implementation of git wrote the waiting files before the log.
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
                # Always: an agent could declare a folder of the tree as git's own, to hide its changes from the engine.
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
        """Use changed rules of a folder from now on; the scan for shown and hidden files waits until no change waits."""
        if self._ground.ignore is not None:
            self._shown.clear()
            before = self._ground.ignore.forget()
            self._old_rules = self._old_rules or before
            self._rules_due.add(folder)

    def _take_rules(self, raw: inotify.Raw, folder: str, path: str) -> None:
        """Handle what an event means for the rules: a .gitignore was written, appeared or went, alone or with its folder."""
        ignore = self._ground.ignore
        if ignore is None:
            return
        if not raw.mask & inotify.IN_ISDIR:
            # A creation is followed by a close: before that its patterns are incomplete.
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
            # Waiting files may be in that folder and have other paths from here on.
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
            # A removed folder was empty: its files caused their own events before.
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
        """Whether changes there are reported immediately, without a rest: people wait for the inbox and for plans."""
        return self._ground.ignore is None or self._is_loud(path) or path.partition("/")[0] == "plans"

    def _is_loud(self, path: str) -> bool:
        """Whether a path is in the inbox, where each file is a task."""
        return path.partition("/")[0] == self._ground.loud

    def _is_young(self, raw: inotify.Raw, path: str) -> bool:
        """Whether `UnsettledFiles` takes this event: a file that was just written may only be temporary."""
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
                self._touched(path)  # a rename changes the ctime only, as a change of mode does
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
            # Once closed it counts as complete, even if a program has opened it again by now.
            seen = self._look(path, found=not waiting.closed)
            if seen is not None and not self._is_ignored_file(path):
                self._tell(seen, git=waiting.git)

    def _tell_moved(self, old: str, new: str, git: bool, *, is_taken: bool) -> None:
        """Report a rename. `is_taken`: another file has the old name now and is reported by itself."""
        seen = self._look(new, found=False)
        if seen is None or seen.type != "file" or self._is_ignored_file(new):
            self._left(old, folder=False, git=git)
            return
        self._tell(Moved(old, new, folder=False, identity=seen.identity, changed=seen.changed), git=git)
        if not is_taken and (there := self._look(old, found=True)) is not None:
            self._tell(there, git=git)  # another file has the old name already

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
        # The close of a file that is being written will report it: no version before that is final.
        if type_of(status) == "file" and writers.has_writer(self._absolute(path)) is not True:
            self._tell(Touched(path, identity_of(status), changed_of(status)))

    def _leave(self, path: str, folder: bool) -> None:
        """Handle a removed file or folder; in the tree the report of a file waits."""
        # Many editors save by moving the old file away first.
        if folder or self._is_at_once(path):
            self._left(path, folder)
        else:
            by_git = self._git.is_at_work(path)
            if by_git:
                self._contents.take(path)
            self._young.leave(path, git=by_git)

    def _left(self, path: str, folder: bool, *, alone: bool = False, git: bool | None = None) -> None:
        """Report that `path` is gone, unless something is there again: the events of that report it. `alone`: the folder was empty."""
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
            # Two folders were exchanged (RENAME_EXCHANGE): only a scan can say which watch belongs to which.
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
        """A file as it is now; None where it is gone, or is a folder.

        `found`: its close was not seen, so the kernel must say whether it is complete. `closed`: a program has closed it.
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
            # Another program may still write to the same file (`touch x; slow > x`): a task must not start half-written.
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
                # A program may have written and closed it between the `lstat` above and the kernel's answer.
                try:
                    status = os.lstat(absolute)
                except OSError:
                    return None
        return Seen(path, identity_of(status), complete, changed=changed_of(status))

    def _is_at_rest(self, path: str, now: FileVersion) -> bool:
        """Whether a file is the same as SETTLED_S ago: the kernel does not know the writers on other machines."""
        before, since = self._resting.get(path, (None, 0.0))
        if before != now:
            # Entries of files that were never complete would stay here otherwise.
            self._resting = {
                one: seen for one, seen in self._resting.items() if time.monotonic() - seen[1] < 60
            }
            self._resting[path] = now, time.monotonic()
            return False
        return time.monotonic() - since >= writers.SETTLED_S

    def _look_again(self) -> None:
        """Look again at files that were open for writing when they were found: their close may have come before the watch."""
        now = time.monotonic()
        for path in [path for path, due in self._later.items() if due <= now]:
            del self._later[path]
            seen = self._look(path, found=True)
            if seen is not None:
                self._tell(seen)

    def _is_ignored(self, folder: str) -> bool:
        if self._ground.ignore is None:
            return False
        # Cached, so that the cost of a deep folder does not grow with the number of folders above it.
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
    """The path of an observation; the root for those without one."""
    match seen:
        case Listing():
            return seen.folder
        case Moved():
            return seen.new
        case Seen() | Gone():
            return seen.path
    return ""
