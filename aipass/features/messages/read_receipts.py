"""The mail folders of runs that live: a thread that tells when a run has opened a message and closed it again.

The kernel does not say who it was. The folder is the run's own, and aipass's other tools never look into it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from aipass.sources import inotify
from aipass.sources.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.workspace.layout import Layout

logger = structlog.get_logger("aipass")

MAIL = "mail"
IN_CLOSE_NOWRITE = 0x10
_MASK = IN_CLOSE_NOWRITE | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW


@dataclass(frozen=True, slots=True)
class MailOpened:
    """A message in a run's mail folder was opened, and closed."""

    run: int
    message: int


class ReadReceipts:
    """A source of what runs read. Everything but the engine's side happens in its own thread."""

    name = "mail"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._worker = Worker(self.name, layout.crashes, self._take)
        self._run_of: dict[int, int] = {}

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin to watch. Where there is no inotify, nobody can say what a run has opened, and it comes again."""
        self._tell = tell
        self._worker.start()

    def stop(self) -> None:
        """End the thread."""
        self._worker.stop()

    def is_settled(self) -> bool:
        """Whether nothing waits here."""
        return self._worker.is_settled()

    def watch(self, run: int, *, lives: bool = True) -> None:
        """Look after a run's mail, or not any more."""
        self._worker.ask(partial(self._watch, run) if lives else partial(self._leave, run))

    def _watch(self, run: int) -> None:
        if (kernel := self._worker.inotify) is None:
            return
        folder = self._layout.run(run) / MAIL
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._run_of[kernel.add(os.fsencode(folder), _MASK)] = run
        except OSError as exc:
            logger.warning("what a run reads of its mail is not seen", run=run, error=str(exc))

    def _leave(self, run: int) -> None:
        for watch in [watch for watch, one in self._run_of.items() if one == run]:
            if self._worker.inotify is not None:
                self._worker.inotify.remove(watch)
            del self._run_of[watch]

    def _take(self, events: list[inotify.Raw]) -> None:
        opened: dict[MailOpened, None] = {}
        for raw in events:
            name = os.fsdecode(raw.name).removesuffix(".md")
            if (
                raw.watch in self._run_of
                and raw.mask & IN_CLOSE_NOWRITE
                and name.isdecimal()
                and len(name) < 19
            ):
                opened[MailOpened(self._run_of[raw.watch], int(name))] = None
        if opened:
            self._tell(list(opened))
