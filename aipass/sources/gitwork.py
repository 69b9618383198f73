"""Which changes of files are git's own: by its locks as the kernel tells of them, and by what its log of HEAD says."""

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
#: What git's log of HEAD says where it has changed the files itself.
MOVING = re.compile(
    r"(checkout|reset|merge|pull|push|rebase(?! \(continue\))|cherry-pick|revert|am)\b|commit \(merge\)"
)
#: Repositories inside this one whose git is watched; of more, nobody says what git did.
MAX_REPOSITORIES = 200
#: So many files of configuration outside the repository are watched.
MAX_CONFIGURED = 32
#: A line of a log is mostly shorter.
LOG_LINE = 4096
#: Of a log so much of the end is read, and of the moves there so many of the newest are looked into one by one.
TAIL_BYTES, MAX_MOVES = 200_000, 50
#: The date of a merge in the log is that of its beginning.
SLOW_MOVE_S = 3600.0
RAW_FIELDS, SHA1_DIGITS = 5, 40
#: A larger file is not compared with what git has put there.
MAX_COMPARED_BYTES = 50_000_000
#: Where nobody can say who has it open, a lock that stands for longer was left behind.
LOCK_FRESH_S = 10.0


#: Path below the root -> the blob that git has put there last, or None where it took away what was there.
Moves = dict[str, str | None]


class GitWork:
    """Watches git's folders of one tree and of the repositories inside it. Used by one thread.

    Git has `index.lock` open from before it writes the first file of a tree until after the last: what the kernel tells
    between its creation and its closing is git's. What comes later, while the lock still stands (`git commit` runs hooks
    and waits for an editor then), is not; nor is anything where a killed git has left one.
    """

    def __init__(self, root: str, folder: str | None) -> None:
        """`folder`: git's own of the tree at `root`; None where there is none."""
        self._root, self._folder = Path(root), folder
        self._kernel: inotify.Inotify | None = None
        #: Of this tree (""), and of repositories inside it by their folder: git's folder, and whose watch it is.
        self._folders: dict[str, str] = {}
        self._tree_of_watch: dict[int, str] = {}
        self._log_watch = self._above = self._common_watch = -1
        self._hooks_watches: set[int] = set()
        #: Folders in which files of the person's own configuration lie, or could lie, and their names there.
        self._person_watches: dict[int, set[bytes]] = {}
        #: The trees that git is at work on, in the order of the kernel's events, so that it is exact whenever they are read.
        self._at_work: set[str] = set()

    def start(self, kernel: inotify.Inotify | None) -> None:
        """Watch git's folder of the tree itself."""
        self._kernel = kernel
        if self._folder is None:
            return
        self.watch("", self._folder)
        above = os.path.dirname(self._folder)
        if kernel is not None and os.path.basename(self._folder) == ".git" and above != str(self._root):
            # The root lies deeper in the repository: what comes in the place of its `.git` nobody else would see.
            with contextlib.suppress(OSError):
                self._above = kernel.add(os.fsencode(above))

    def inner(self) -> tuple[str, ...]:
        """The folders of the repositories inside the tree."""
        return tuple(sorted(tree for tree in self._folders if tree))

    def is_configured(self, raw: inotify.Raw) -> bool:
        """Whether git's configuration of the tree, or of a repository inside it, or one of its hooks, was changed just now."""
        if raw.watch in self._hooks_watches:
            return True
        if raw.name in self._person_watches.get(raw.watch, ()):
            self._watch_person()  # it may name others now
            return True
        is_common = raw.watch == self._common_watch or self._tree_of_watch.get(raw.watch) == ""
        written = raw.mask & (inotify.IN_CLOSE_WRITE | inotify.IN_MOVED_TO | inotify.IN_CREATE)
        if is_common and raw.name in {b"hooks", b"aipass"}:
            self._watch_configuration()
        is_ours = is_common or raw.watch in self._tree_of_watch
        return is_ours and bool(written) and raw.name in {b"config", b"config.worktree", b"hooks"}

    def _watch_configuration(self) -> None:
        """Watch the folders that hold git's configuration and its hooks, which worktrees share."""
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
        """Watch the files of configuration outside this repository: a folder of hooks may be named there at any time."""
        assert self._kernel is not None
        self._person_watches = {}
        for file in islice(configuration.files(self._root), MAX_CONFIGURED):
            for place in {file, os.path.realpath(file)}:
                folder, name = os.path.split(place)
                while not os.path.isdir(folder) and folder != "/":
                    folder, name = os.path.split(folder)  # whoever makes it makes that first
                with contextlib.suppress(OSError):
                    watch = self._kernel.add(os.fsencode(folder))
                    self._person_watches.setdefault(watch, set()).add(os.fsencode(name))

    def has_worktrees(self, raw: inotify.Raw) -> bool:
        """Whether the first of other worktrees was made just now."""
        is_own = self._tree_of_watch.get(raw.watch) == ""
        return is_own and raw.name == b"worktrees" and bool(raw.mask & inotify.IN_CREATE)

    def has_come(self, raw: inotify.Raw) -> str | None:
        """The folder of git's that has just come above the root; None where none has."""
        is_new = raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO)
        return self._folder if raw.watch == self._above and raw.name == b".git" and is_new else None

    def watch(self, tree: str, folder: str) -> None:
        """Watch one more of git's folders, or another one for the same tree."""
        if self._kernel is None or (tree not in self._folders and len(self._folders) >= MAX_REPOSITORIES):
            return
        try:
            watch = self._kernel.add(os.fsencode(folder))
        except OSError:
            return  # nobody can say then what git did
        if self._tree_of_watch.get(watch) == tree:
            return
        for old in [old for old, theirs in self._tree_of_watch.items() if theirs == tree]:
            # Another folder has come in its place.
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
        with contextlib.suppress(OSError):  # no log is kept there, or not yet
            self._log_watch = self._kernel.add(os.fsencode(f"{self._folder}/logs"))

    def knows(self, tree: str) -> bool:
        """Whether git's folder for this tree is watched."""
        return tree in self._folders

    def is_at_work(self, path: str) -> bool:
        """Whether git is at work on the tree that `path` lies in, at this place in the order of events."""
        return bool(self._at_work) and self._tree_of(path) in self._at_work

    def take(self, raw: inotify.Raw) -> bool:
        """Take an event of the kernel; whether the index of the tree itself was locked just now."""
        tree = self._tree_of_watch.get(raw.watch)
        if tree is None:
            return False
        if not tree and raw.name == b"logs" and raw.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            self._watch_log()  # git makes it with the first entry
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
        """Where an event says that git's log has just told of a move of HEAD: what that has put where."""
        if raw.watch != self._log_watch or raw.name != b"HEAD" or not raw.mask & inotify.IN_CLOSE_WRITE:
            return None
        last = self._log(LOG_LINE)[-1:]
        return self._moves_of(last[0]) if last and _is_move(last[0]) else None

    def look_anew(self) -> None:
        """After events were lost: see which trees git is at work on."""
        self._at_work.clear()
        for tree in self._folders:
            self._find_lock(tree)

    def moves(self, since: float) -> Moves:
        """What git's log says that git has put where while nobody looked.

        `since`: seconds since the epoch; earlier moves were seen when they were made.
        """
        found: Moves = {}
        # A date that lies ahead, or is the merge's beginning, hides none that matters: what is not as git has put it is not git's.
        entries = [one for one in self._log(TAIL_BYTES) if one.time >= since - SLOW_MOVE_S and _is_move(one)]
        ranges: list[ReflogEntry] = []
        for at, entry in enumerate(entries):
            # Of very many, as in a rebase, those that follow each other are one.
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
            # A merge that a person has finished: git's is what is as it was on the other side.
            for path in ask(self._root, *words[:5], "--name-only", f"{entry.new}^2", entry.new, "--"):
                found.pop(path, None)
        return found

    def _log(self, tail: int) -> tuple[ReflogEntry, ...]:
        """The last lines of the log of HEAD."""
        return () if self._folder is None else read_log(Path(self._folder, "logs/HEAD"), tail)

    def _find_lock(self, tree: str) -> None:
        """Nobody saw the lock being made that may stand there."""
        lock = f"{self._folders[tree]}/{os.fsdecode(INDEX_LOCK)}"
        try:
            made = os.lstat(lock).st_mtime
        except OSError:
            return
        is_open = writers.has_writer(lock)
        if is_open or (is_open is None and time.time() - made < LOCK_FRESH_S):
            self._at_work.add(tree)

    def _tree_of(self, path: str) -> str:
        """The tree that `path` lies in: a repository's folder inside, or "" for the tree itself."""
        if self._folders.keys() <= {""}:
            return ""
        while path and path not in self._folders:
            path = path.rpartition("/")[0]
        return path


def _is_move(entry: ReflogEntry) -> bool:
    """Not `checkout -b`, nor `reset` to where it stands: no file was written."""
    return entry.old != entry.new and MOVING.match(entry.message) is not None


def is_blob(path: str, blob: str) -> bool:
    """Whether a file holds just what the blob of that name does; not where git writes it in another form (line ends, filters)."""
    try:
        data = held.read(path, MAX_COMPARED_BYTES)
    except OSError:
        return False
    make = hashlib.sha256 if len(blob) > SHA1_DIGITS else hashlib.sha1
    found = make(b"blob %d\0" % len(data), usedforsecurity=False)
    found.update(data)
    return found.hexdigest() == blob
