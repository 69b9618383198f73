"""The filesystem source: a watchdog observer over the working tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from watchdog.events import FileSystemEventHandler
from watchdog.observers.api import BaseObserver

from aipass.files.filesystems import shared_by
from aipass.git.query import ask
from aipass.sources.emitter import TreeEmitter, WatchContext
from aipass.sources.ignore import IgnoreRules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aipass.sources.observation import Observation


class Watched:
    """A watchdog observer of one tree. The context's `tell` gets batches of observations, in the emitter's thread."""

    def __init__(self, ground: WatchContext) -> None:
        self._observer = BaseObserver(TreeEmitter, grounds={ground.root: ground})
        self._observer.schedule(FileSystemEventHandler(), ground.root, recursive=True)
        # `schedule` returns a watch; the emitter that it makes is public only in the observer's set.
        (self.emitter,) = (emitter for emitter in self._observer.emitters if isinstance(emitter, TreeEmitter))

    def start(self) -> None:
        """Start the observer's threads: the emitter watches and scans the tree."""
        self._observer.start()

    def stop(self) -> None:
        """End the observer's threads and wait for them; safe where they never started."""
        self._observer.stop()
        # Joining a thread that never started raises RuntimeError.
        if self._observer.is_alive():
            self._observer.join()


class Filesystem:
    """The source of file events: watches a root without the paths that `IgnoreRules` ignores. `baseline`: files that exist at the start cause no events."""

    name = "filesystem"

    def __init__(
        self,
        root: Path,
        patterns: tuple[str, ...] = (),
        *,
        baseline: bool = False,
        since: float = 0.0,
        git_came: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `start` begins to watch.

        `since` (seconds since the epoch): git's changes up to then are recorded already. The watching thread calls `git_came` when a
        `.git` appears in the root.
        """
        self._root, self._patterns, self._baseline, self._since = root, patterns, baseline, since
        self._git_came = git_came
        self._watched: Watched | None = None
        self._ground: WatchContext | None = None

    def start(self, tell: Callable[[list[Observation]], None]) -> None:
        """Start the watching thread; `tell` gets batches of observations in that thread."""
        self._ground = WatchContext(
            root=str(self._root),
            tell=tell,
            ignore=IgnoreRules(self._root, self._patterns, self._unused),
            # Should the kernel's watches run out, a drop in the inbox must still be seen immediately.
            first=("inbox",),
            baseline=self._baseline,
            since=self._since,
            git_came=self._git_came,
            shared=shared_by(self._root) is not None,
            git=next(iter(ask(self._root, "rev-parse", "--absolute-git-dir")), "").removesuffix("\n") or None,
        )
        self._watched = Watched(self._ground)
        self._watched.start()

    def _unused(self, path: str, reason: str) -> None:
        """`IgnoreRules` calls this, in the emitter's thread."""
        if self._watched is not None:
            self._watched.emitter.tell_unused(path, reason)

    def stop(self) -> None:
        """End the watching thread and wait for it."""
        if self._watched is not None:
            self._watched.stop()

    def scan(self, top: str = "", reason: str = "asked") -> None:
        """Request a scan that compares `top` and all below it with the ledger; returns immediately. Callable from any thread."""
        if self._watched is not None:
            self._watched.emitter.ask_scan(top, reason)

    def reconfigure(self, patterns: tuple[str, ...]) -> None:
        """Use other ignore patterns and request a scan for the difference; does nothing where they are the same."""
        if patterns != self._patterns and self._ground is not None:
            self._patterns = patterns
            # The scan needs the old rules too: a file that only other rules show is not a new file.
            self._ground.before, self._ground.ignore = (
                self._ground.ignore,
                IgnoreRules(self._root, patterns, self._unused),
            )
            self.scan("", "ignore")

    def is_settled(self) -> bool:
        """Return whether the scan at the start is complete and its observations are reported."""
        return self._watched is not None and self._watched.emitter.settled.is_set()

    def counts(self) -> tuple[int, int]:
        """Return how many folders are watched and how many are polled."""
        return self._watched.emitter.counts() if self._watched is not None else (0, 0)
