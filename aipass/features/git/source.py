"""The git source: reads the reference logs (reflogs) after each change, and reports their entries to the engine.

Two signals start a read: a file that a git hook leaves in the spool, and a change in the folders of the logs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from aipass.git import hooktext
from aipass.git.query import ask
from aipass.git.ref_changes import (
    HEAD,
    HEADS,
    OURS,
    REBASED,
    REMOTES,
    TAGS,
    WORKTREES,
    About,
    GitSeen,
    ReflogEntry,
    read_log,
)
from aipass.sources.emitter import WatchContext
from aipass.sources.filesystem import Watched
from aipass.supervisor.held import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = structlog.get_logger("aipass")

#: Bytes read from the end of a log; and commits described in one read. A source that was off for long skips older ones.
TAIL_BYTES, DESCRIBED = 512_000, 500
#: Debounce: a commit changes several logs one after the other, and they are read once.
REST_S = 0.03
#: Attempts to find a repository that `git init` or `git clone` is just making, and the pause between them.
MADE_TRIES, MADE_WAIT_S = 20, 0.2
#: The pause before another attempt to watch the logs.
RETRY_S = 1.0
#: Commits on a detached HEAD in worktrees beyond these are not reported; commits on branches are, from the branch's log.
MAX_WORKTREES = 200
#: The first paths of a commit are reported, the rest is not: an event is one row of the ledger.
MAX_PATHS = 1000
MAX_SUBJECT = 2000
#: The newest commits of a rebase are reported, the rest is not.
MAX_REBASED = 5000


class Git:
    """Watches the reference logs of one repository and the spool folder of its hooks, in a thread of its own."""

    name = "git"

    def __init__(
        self,
        root: Path,
        spool: Path,
        wants_rebased: Callable[[], bool] = lambda: False,
        *,
        baseline: bool = False,
        came: Callable[[], object] = lambda: None,
    ) -> None:
        """`wants_rebased`: whether a rule wants each commit of a rebase; asked at every read.

        `baseline`: this is the first look at the repository, so everything that exists at the start is recorded without events.
        `came`: called after another repository was found.
        """
        self._wants_rebased, self._baseline, self._came = wants_rebased, baseline, came
        self._root, self._spool = root, spool / hooktext.SPOOL
        self._tell: Callable[[list[GitSeen]], None] | None = None
        self._watched: list[Watched] = []
        self._something, self._settled = threading.Event(), threading.Event()
        self._ending = self._is_other = False
        self._own = self._common = Path()
        self._is_there = False
        self._thread: threading.Thread | None = None
        #: Inode, size and mtime of each log at the last read: an unchanged log is not read again.
        self._known: dict[str, tuple[int, int, int]] = {}
        #: Commits that were already described: another log that names the same commit costs no second look.
        self._described: set[str] = set()

    def start(self, tell: Callable[[list[GitSeen]], None]) -> None:
        """Start the thread. Without a repository it waits until `again` is called."""
        self._tell = tell
        is_there = self._begin()
        if self._baseline:
            # Without a repository the baseline is empty: everything in one that appears later is an event.
            tell([(self._look(describe=False) if is_there else None) or GitSeen({})])
        if is_there:
            self._something.set()
        self._thread = threading.Thread(target=self._run, name="git", daemon=True)
        self._thread.start()

    def again(self) -> None:
        """Look for a repository again: one has appeared, or another has taken its place. Thread-safe; returns immediately."""
        self._is_other = True
        self._something.set()

    def _find_again(self) -> None:
        self._is_other = False
        # `git init` makes the folder first and its contents a moment later: until then git finds no repository.
        for _ in range(MADE_TRIES):
            try:
                if self._begin():
                    self._came()
                    return
            except OSError as exc:
                # The folder of the logs does not exist yet and aipass must not make it there, or the system's limit of
                # watches is reached. Both may pass.
                logger.warning("the repository cannot be watched yet", error=str(exc))
                self._is_other = True
            if self._is_other or self._ending:
                return
            threading.Event().wait(MADE_WAIT_S)

    def _begin(self) -> bool:
        """Watch the present repository instead of the one before. Returns whether there is one."""
        for watched in self._watched:
            watched.stop()
        self._watched, self._is_there = [], False
        found = ask(self._root, "rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir")
        lines = found[0].removesuffix("\n").split("\n") if found else []
        if len(lines) != 2:
            self._settled.set()
            return False
        own, common = map(Path, lines)
        self._own, self._common, self._tags = own, common, common / "refs/tags"
        folders = {own / "logs", common / "logs", self._tags, self._spool}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        # Not made here: git makes this folder with the first linked worktree and removes it with the last.
        folders |= {common / WORKTREES} if (common / WORKTREES).is_dir() else set()
        for folder in folders:
            watched = Watched(WatchContext(root=str(folder), tell=lambda _: self._something.set()))
            self._watched.append(watched)
            watched.start()
        self._is_there = True
        return True

    def stop(self) -> None:
        """Stop the thread and all watches. Returns after the thread has ended."""
        self._ending = True
        self._something.set()
        if self._thread is not None:
            self._thread.join()
        for watched in self._watched:
            watched.stop()

    def is_settled(self) -> bool:
        """Whether every change that was made before the start, or signalled since, has been reported."""
        return self._settled.is_set() and not self._something.is_set()

    def _run(self) -> None:
        assert self._tell is not None
        while True:
            self._something.wait(RETRY_S if self._is_other else None)
            if self._ending:
                return
            threading.Event().wait(REST_S)
            self._something.clear()
            try:
                if self._is_other:
                    self._find_again()
                self._clear_signals()
                seen = self._look() if self._is_there else None
            except Exception:
                # People and programs write git's folder at any moment, so a read may fail in ways that we do not know.
                # The thread must live: the next change starts another read.
                logger.exception("git's reference logs cannot be read")
                seen = None
            if seen is not None:
                self._tell([seen])
            self._settled.set()

    def _clear_signals(self) -> None:
        """Remove the files that hooks left."""
        # A hook's file is a signal without content. Any program can write one, so only git's logs say what happened.
        self._spool.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self._spool):
            if not entry.name.startswith("."):
                try:
                    os.unlink(entry.path)
                except OSError:
                    continue

    def _look(self, *, describe: bool = True) -> GitSeen | None:
        changed = {ref: path for ref, path in self._files() if self._is_changed(ref, path)}
        folders = (Path(folder) for folder, _, _ in os.walk(self._tags))
        is_tags = self._is_changed(TAGS, *folders, self._common / "packed-refs")
        if not changed and not is_tags:
            return None
        logs = {ref: read_log(path, TAIL_BYTES) for ref, path in changed.items()}
        new = [
            entry.new
            for entries in logs.values()
            for entry in entries
            if entry.makes_commit or entry.is_merge or entry.is_unknown
        ]
        rebased = dict(self._rebased(logs.values())) if self._wants_rebased() else {}
        new += [sha for shas in rebased.values() for sha in shas]
        wanted = [sha for sha in dict.fromkeys(new) if sha not in self._described][-DESCRIBED:]
        wanted = wanted if describe else []
        self._described.update(wanted)
        tags = (
            dict(_pairs(ask(self._root, "for-each-ref", f"--format={_TAG}", "refs/tags")))
            if is_tags
            else None
        )
        heads = [(HEAD, self._own), *((f"{WORKTREES}/{one.name}/{HEAD}", one) for one in self._worktrees())]
        detached = frozenset(ref for ref, folder in heads if _is_detached(folder / HEAD))
        return GitSeen(logs, tags, dict(self._describe(wanted)), detached, rebased, time.time())

    def _rebased(self, logs: Iterable[tuple[ReflogEntry, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The commits that each rebase made, oldest first, by the branch's new tip."""
        for entries in logs:
            for entry in entries:
                match = REBASED.match(entry.message)
                if match is not None and entry.new not in self._described:
                    said = ask(
                        self._root,
                        "rev-list",
                        "--reverse",
                        f"--max-count={MAX_REBASED}",
                        f"{match[1]}..{entry.new}",
                    )
                    yield entry.new, tuple("".join(said).split())

    def _files(self) -> Iterator[tuple[str, Path]]:
        """The logs of people's work: HEAD here and in other worktrees, all branches but aipass's own, and remotes."""
        yield HEAD, self._own / "logs/HEAD"
        for other in self._worktrees():
            yield f"{WORKTREES}/{other.name}/{HEAD}", other / "logs/HEAD"
        top = self._common / "logs"
        for kind in (HEADS, REMOTES):
            for folder, _, names in os.walk(top / kind):
                for name in names:
                    path = Path(folder, name)
                    ref = str(path.relative_to(top))
                    if not ref.startswith(OURS) and not name.endswith(".lock"):
                        yield ref, path

    def _worktrees(self) -> list[Path]:
        """The git folders of the other worktrees, at most `MAX_WORKTREES`."""
        with contextlib.suppress(OSError):
            found = sorted(os.scandir(self._common / WORKTREES), key=lambda entry: entry.name)
            there = [Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False)]
            return [folder for folder in there[:MAX_WORKTREES] if folder != self._own]
        return []

    def _is_changed(self, ref: str, *paths: Path) -> bool:
        parts = []
        for path in paths:
            try:
                found = path.stat()
            except OSError:
                continue
            parts.append((found.st_ino, found.st_size, found.st_mtime_ns))
        now = tuple(map(sum, zip(*parts, strict=True))) if parts else (0, 0, 0)
        # A log that never existed is no change; one that has vanished is.
        if not parts and ref not in self._known:
            return False
        changed = self._known.get(ref) != now
        self._known[ref] = now  # type: ignore[assignment]
        return changed

    def _describe(self, shas: list[str]) -> Iterator[tuple[str, About]]:
        """Time, author, subject, parents and paths of commits; skips a commit that git cannot show."""
        for sha in shas:
            # NUL is the only character that none of the fields can contain. The space before each field keeps an empty
            # one (a commit without parents), because `ask` drops empty parts.
            told = ask(self._root, "log", "-1", "-z", "--format=%ct%x00 %an%x00 %s%x00 %P", sha)
            if len(told) == 4:
                at, author, subject, parents = (field.strip() for field in told)
                words = ("diff-tree", "-z", "-r", "--root", "--no-commit-id", "--name-only", "--no-renames")
                # Of a merge, the paths that it brought to the branch; git shows none of them by default.
                paths = ask(self._root, *words, "--diff-merges=first-parent", sha)
                yield (
                    sha,
                    About(
                        author,
                        subject[:MAX_SUBJECT],
                        tuple(paths[:MAX_PATHS]),
                        parents.partition(" ")[0],
                        float(at),
                    ),
                )


def _is_detached(head: Path) -> bool:
    """Whether a HEAD file names a commit instead of a branch; false where it cannot be read."""
    # Read directly: a git process for each of up to 200 worktrees after every commit would cost seconds.
    try:
        with open_regular(head) as file:
            return not file.read(10).startswith(b"ref:")
    except OSError:
        return False


_TAG = "%(refname)%00%(objectname)%00"


def _pairs(words: list[str]) -> Iterable[tuple[str, str]]:
    clean = [word.strip("\n") for word in words if word.strip("\n")]
    return zip(clean[::2], clean[1::2], strict=False)
