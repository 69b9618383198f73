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
    """One ground under a watchdog observer. `tell` gets batches of observations, in the emitter's thread."""

    def __init__(self, ground: WatchContext) -> None:
        self._observer = BaseObserver(TreeEmitter, grounds={ground.root: ground})
        self._observer.schedule(FileSystemEventHandler(), ground.root, recursive=True)
        (self.emitter,) = (emitter for emitter in self._observer.emitters if isinstance(emitter, TreeEmitter))

    def start(self) -> None:
        """Begin to watch, and to scan what is there."""
        self._observer.start()

    def stop(self) -> None:
        """End the threads."""
        self._observer.stop()
        if self._observer.is_alive():
            self._observer.join()


class Filesystem:
    """Watches a root, but for what `IgnoreRules` leaves out. `baseline`: what is there already is no news."""

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
        """`since`: what git did before was told already; seconds since the epoch.

        `git_came` is told, in the thread that watches, when a `.git` comes into the root.
        """
        self._root, self._patterns, self._baseline, self._since = root, patterns, baseline, since
        self._git_came = git_came
        self._watched: Watched | None = None
        self._ground: WatchContext | None = None

    def start(self, tell: Callable[[list[Observation]], None]) -> None:
        """Begin to observe."""
        self._ground = WatchContext(
            root=str(self._root),
            tell=tell,
            ignore=IgnoreRules(self._root, self._patterns, self._unused),
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
        """Asked by `IgnoreRules`, in the emitter's thread."""
        if self._watched is not None:
            self._watched.emitter.tell_unused(path, reason)

    def stop(self) -> None:
        """End all that `start` began."""
        if self._watched is not None:
            self._watched.stop()

    def scan(self, top: str = "", reason: str = "asked") -> None:
        """Have a folder and all below it compared with what is known."""
        if self._watched is not None:
            self._watched.emitter.ask_scan(top, reason)

    def reconfigure(self, patterns: tuple[str, ...]) -> None:
        """Take over other patterns to ignore."""
        if patterns != self._patterns and self._ground is not None:
            self._patterns = patterns
            self._ground.before, self._ground.ignore = (
                self._ground.ignore,
                IgnoreRules(self._root, patterns, self._unused),
            )
            self.scan("", "ignore")

    def is_settled(self) -> bool:
        """Whether what was there at the start has been told."""
        return self._watched is not None and self._watched.emitter.settled.is_set()

    def counts(self) -> tuple[int, int]:
        """Folders watched, folders polled."""
        return self._watched.emitter.counts() if self._watched is not None else (0, 0)
