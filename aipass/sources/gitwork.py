"""The detection of file changes that git itself makes, by its index lock and by its log of HEAD."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from aipass.git import configuration
from aipass.git.query import ask
from aipass.git.ref_changes import ReflogEntry, read_log
from aipass.sources import inotify, writers
from aipass.supervisor import held

INDEX_LOCK = b"index.lock"
#: The operations in git's log of HEAD that change files of the working tree.
MOVING = re.compile(
    r"(checkout|reset|merge|pull|push|rebase(?! \(continue\))|cherry-pick|revert|am)\b|commit \(merge\)"
)
#: The most repositories inside this one whose git folders are watched; in further ones git's changes count as ordinary ones.
MAX_REPOSITORIES = 200
#: The most configuration files outside the repository that are watched.
MAX_CONFIGURED = 32
#: Bytes to read for the last line of a log; longer lines are rare.
LOG_LINE = 4096
#: How much is read of the end of a log, and how many of the newest moves there get a `git diff-tree` each.
TAIL_BYTES, MAX_MOVES = 200_000, 50
#: The log dates a merge by its beginning, so older entries than `since` must be read as well.
SLOW_MOVE_S = 3600.0
RAW_FIELDS, SHA1_DIGITS = 5, 40
#: A larger file is not compared with git's blob and counts as changed by another program.
MAX_COMPARED_BYTES = 50_000_000
#: Where the kernel does not say who has it open, an older lock counts as left behind by a killed git.
LOCK_FRESH_S = 10.0


#: Path below the root -> the id of the blob that git wrote there last, or None where git removed the file.
Moves = dict[str, str | None]


class GitWork:
    """Watches git's folders of one tree and of the repositories inside it. Used by one thread.

    Git has `index.lock` open from before it writes the first file of a tree until after the last: events between the
    lock's creation and its close are git's. Later events are not, even if the lock file still exists (`git commit` then
    runs hooks and waits for an editor). Nor are events beside a lock that a killed git has left.
    """

    def __init__(self, root: str, folder: str | None) -> None:
        """`folder`: git's own folder of the tree at `root`; None where there is no repository."""
        self._root, self._folder = Path(root), folder
        self._kernel: inotify.Inotify | None = None
        #: Git's folder by tree: "" for this tree, else the path of a repository inside it; then the tree of each watch.
        self._folders: dict[str, str] = {}
        self._tree_of_watch: dict[int, str] = {}
        self._log_watch = self._above = self._common_watch = -1
        self._hooks_watches: set[int] = set()
        #: By watch: the names of the user's own configuration files in that folder, whether they exist or not.
        self._person_watches: dict[int, set[bytes]] = {}
        #: The trees that git works on. Follows the order of the kernel's events, so it is exact however late they are read.
        self._at_work: set[str] = set()

    def start(self, kernel: inotify.Inotify | None) -> None:
        """Watch git's folder of the tree itself. Without `kernel` (no inotify) nothing is watched, and no change counts as git's."""
        self._kernel = kernel
        if self._folder is None:
            return
        self.watch("", self._folder)
        above = os.path.dirname(self._folder)
        if kernel is not None and os.path.basename(self._folder) == ".git" and above != str(self._root):
            # The root is deeper in the repository: no other watch would see a new `.git` above it.
            with contextlib.suppress(OSError):
                self._above = kernel.add(os.fsencode(above))

    def inner(self) -> tuple[str, ...]:
        """Return the folders of the repositories inside the tree, sorted."""
        return tuple(sorted(tree for tree in self._folders if tree))

    def is_configured(self, raw: inotify.Raw) -> bool:
        """Return whether an event changed git's configuration or a hook, of the tree or of a repository inside it."""
        if raw.watch in self._hooks_watches:
            return True
        if raw.name in self._person_watches.get(raw.watch, ()):
            self._watch_person()  # the changed file may include other files now
            return True
        is_common = raw.watch == self._common_watch or self._tree_of_watch.get(raw.watch) == ""
        written = raw.mask & (inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO | inotify.IN_CREATE)
        if is_common and raw.name in {b"hooks", b"aipass"}:
            self._watch_configuration()
        is_ours = is_common or raw.watch in self._tree_of_watch
        return is_ours and bool(written) and raw.name in {b"config", b"config.worktree", b"hooks"}

    def _watch_configuration(self) -> None:
        """Watch the folders of git's configuration and of its hooks, which all worktrees share."""
        assert self._kernel is not None
        common = self._folder or ""
        with contextlib.suppress(OSError):
            data = held.read(f"{self._folder}/commondir", LOG_LINE)
            common = os.path.normpath(os.path.join(common, os.fsdecode(data.rstrip(b"\n"))))
            self._common_watch = self._kernel.add(os.fsencode(common))
        self._hooks_watches = set()
        for place in (f"{common}/hooks", f"{common}/aipass/hooks"):
            with contextlib.suppress(OSError):
                self._hooks_watches.add(self._kernel.add(os.fsencode(place)))
        self._watch_person()

    def _watch_person(self) -> None:
        """Watch the files of configuration outside this repository: any of them may name another folder of hooks."""
        assert self._kernel is not None
        self._person_watches = {}
        for file in islice(configuration.files(self._root), MAX_CONFIGURED):
            # A configuration file is often a symbolic link into a folder of dotfiles: an edit there changes only the target.
            for place in {file, os.path.realpath(file)}:
                folder, name = os.path.split(place)
                while not os.path.isdir(folder) and folder != "/":
                    folder, name = os.path.split(folder)  # a missing folder appears here first
                with contextlib.suppress(OSError):
                    watch = self._kernel.add(os.fsencode(folder))
                    self._person_watches.setdefault(watch, set()).add(os.fsencode(name))

    def has_worktrees(self, raw: inotify.Raw) -> bool:
        """Return whether an event is the creation of the first linked worktree."""
        is_own = self._tree_of_watch.get(raw.watch) == ""
        return is_own and raw.name == b"worktrees" and bool(raw.mask & inotify.IN_CREATE)

    def has_come(self, raw: inotify.Raw) -> str | None:
        """Return git's folder where an event says that it has just appeared above the root; else None."""
        is_new = raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO)
        return self._folder if raw.watch == self._above and raw.name == b".git" and is_new else None

    def watch(self, tree: str, folder: str) -> None:
        """Watch one more of git's folders, or another one for the same tree; does nothing beyond MAX_REPOSITORIES."""
        if self._kernel is None or (tree not in self._folders and len(self._folders) >= MAX_REPOSITORIES):
            return
        try:
            watch = self._kernel.add(os.fsencode(folder))
        except OSError:
            return  # without a watch git's changes count as ordinary ones
        if self._tree_of_watch.get(watch) == tree:
            return
        for old in [old for old, theirs in self._tree_of_watch.items() if theirs == tree]:
            # The tree has another git folder now (`git init` after `rm -r .git`): the old watch would report for nothing.
            del self._tree_of_watch[old]
            self._kernel.remove(old)
        self._at_work.discard(tree)
        self._tree_of_watch[watch], self._folders[tree] = tree, folder
        self._find_lock(tree)
        if not tree:
            self._folder = folder
            self._watch_log()
            self._watch_configuration()

    def _watch_log(self) -> None:
        assert self._kernel is not None
        if self._log_watch >= 0:
            self._kernel.remove(self._log_watch)
            self._log_watch = -1
        with contextlib.suppress(OSError):  # this repository keeps no logs, or none yet
            self._log_watch = self._kernel.add(os.fsencode(f"{self._folder}/logs"))

    def knows(self, tree: str) -> bool:
        """Return whether git's folder of this tree is watched."""
        return tree in self._folders

    def is_at_work(self, path: str) -> bool:
        """Return whether git works on the tree of `path` at this point in the order of events."""
        return bool(self._at_work) and self._tree_of(path) in self._at_work

    def take(self, raw: inotify.Raw) -> bool:
        """Process an event of the kernel; returns whether it locked the index of the tree itself."""
        tree = self._tree_of_watch.get(raw.watch)
        if tree is None:
            return False
        if not tree and raw.name == b"logs" and raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            self._watch_log()  # git makes this folder with the first entry
        if raw.mask & inotify.IN_IGNORED:
            del self._tree_of_watch[raw.watch]
            self._folders.pop(tree, None)
            self._at_work.discard(tree)
        elif raw.name == INDEX_LOCK:
            if raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
                self._at_work.add(tree)
                return not tree
            if raw.mask & (inotify.IN_CLOSE_WRITE | inotify.IN_DELETE | inotify.IN_MOVED_FROM):
                self._at_work.discard(tree)
        return False

    def has_moved(self, raw: inotify.Raw) -> Moves | None:
        """Return what git wrote where, if an event says that git has just logged a move of HEAD; else None."""
        if raw.watch != self._log_watch or raw.name != b"HEAD" or not raw.mask & inotify.IN_CLOSE_WRITE:
            return None
        last = self._log(LOG_LINE)[-1:]
        return self._moves_of(last[0]) if last and _is_move(last[0]) else None

    def look_anew(self) -> None:
        """Find out again which trees git works on; needed after the kernel dropped events (queue overflow)."""
        self._at_work.clear()
        for tree in self._folders:
            self._find_lock(tree)

    def moves(self, since: float) -> Moves:
        """Return what git wrote where since `since` (seconds since the epoch), according to its log of HEAD.

        For the time without a watch; git starts once per move.
        """
        found: Moves = {}
        # Too many entries do no harm: a file counts as git's only if its content is still the blob that git wrote.
        entries = [one for one in self._log(TAIL_BYTES) if one.time >= since - SLOW_MOVE_S and _is_move(one)]
        ranges: list[ReflogEntry] = []
        for at, entry in enumerate(entries):
            # A rebase has very many entries: consecutive older ones become one range, for one `git diff-tree`.
            if ranges and len(entries) - at >= MAX_MOVES and ranges[-1].new == entry.old:
                ranges[-1] = replace(entry, old=ranges[-1].old)
            else:
                ranges.append(entry)
        for one in ranges[-2 * MAX_MOVES :]:
            found |= self._moves_of(one)
        return found

    def _moves_of(self, entry: ReflogEntry) -> Moves:
        words = ("diff-tree", "-r", "-z", "--no-renames", "--relative", "--raw", "--no-abbrev")
        told = ask(self._root, *words, entry.old, entry.new, "--")
        found: Moves = {}
        for about, path in zip(told[::2], told[1::2], strict=False):
            # `:100644 100644 <old> <new> M`
            fields = about.split(" ")
            if len(fields) == RAW_FIELDS:
                found[path] = fields[3] if fields[3].strip("0") else None
        if entry.message.startswith("commit"):
            # A person finished this merge: git wrote only the files that are the same as on the other side.
            for path in ask(self._root, *words[:5], "--name-only", f"{entry.new}^2", entry.new, "--"):
                found.pop(path, None)
        return found

    def _log(self, tail: int) -> tuple[ReflogEntry, ...]:
        """The last lines of the log of HEAD."""
        return () if self._folder is None else read_log(Path(self._folder, "logs/HEAD"), tail)

    def _find_lock(self, tree: str) -> None:
        """Look for a lock whose creation was not seen."""
        lock = f"{self._folders[tree]}/{os.fsdecode(INDEX_LOCK)}"
        try:
            made = os.lstat(lock).st_mtime
        except OSError:
            return
        is_open = writers.has_writer(lock)
        if is_open or (is_open is None and time.time() - made < LOCK_FRESH_S):
            self._at_work.add(tree)

    def _tree_of(self, path: str) -> str:
        """The tree of `path`: the folder of a repository inside this one, or "" for this tree."""
        if self._folders.keys() <= {""}:
            return ""
        while path and path not in self._folders:
            path = path.rpartition("/")[0]
        return path


def _is_move(entry: ReflogEntry) -> bool:
    """Whether an entry changed files. `checkout -b`, and `reset` to the same commit, did not."""
    return entry.old != entry.new and MOVING.match(entry.message) is not None


def is_blob(path: str, blob: str) -> bool:
    """Return whether a file has exactly the content of a git blob; False where git converts it (line ends, filters)."""
    try:
        data = held.read(path, MAX_COMPARED_BYTES)
    except OSError:
        return False
    # SHA-256 repositories have ids of 64 digits. Not for security: git's own ids are compared.
    make = hashlib.sha256 if len(blob) > SHA1_DIGITS else hashlib.sha1
    found = make(b"blob %d\0" % len(data), usedforsecurity=False)
    found.update(data)
    return found.hexdigest() == blob
