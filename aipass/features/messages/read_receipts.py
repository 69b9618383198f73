"""The source of read receipts: a thread that watches the mail folders of live runs, and reports which messages were opened.

inotify does not report which process opened a file. The folder belongs to the run, and no other part of aipass reads there.
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
#: From linux/inotify.h. A reader closes a file with this event, a writer with another one, so our own writes do not count.
IN_CLOSE_NOWRITE = 0x10
_MASK = IN_CLOSE_NOWRITE | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW


@dataclass(frozen=True, slots=True)
class MailOpened:
    """A report: a message in a run's mail folder was opened and closed."""

    run: int
    message: int


class ReadReceipts:
    """The source of read receipts. Its public methods only queue work for its own thread."""

    name = "mail"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._worker = Worker(self.name, layout.crashes, self._take)
        self._run_of: dict[int, int] = {}

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Start the thread. Without inotify (macOS) no open is seen, so messages are shown again in the next prompt."""
        self._tell = tell
        self._worker.start()

    def stop(self) -> None:
        """End the thread."""
        self._worker.stop()

    def is_settled(self) -> bool:
        """Return whether no work is queued."""
        return self._worker.is_settled()

    def watch(self, run: int, *, lives: bool = True) -> None:
        """Start watching the mail of a run, or stop with `lives=False`."""
        self._worker.ask(partial(self._watch, run) if lives else partial(self._leave, run))

    def _watch(self, run: int) -> None:
        if (kernel := self._worker.inotify) is None:
            return
        folder = self._layout.run(run) / MAIL
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._run_of[kernel.add(os.fsencode(folder), _MASK)] = run
        except OSError as exc:
            logger.warning("aipass cannot see which messages a run reads", run=run, error=str(exc))

    def _leave(self, run: int) -> None:
        for watch in [watch for watch, one in self._run_of.items() if one == run]:
            if self._worker.inotify is not None:
                self._worker.inotify.remove(watch)
            del self._run_of[watch]

    def _take(self, events: list[inotify.Raw]) -> None:
        # A dict: a file that is opened several times is one report, in the order of the first opens.
        opened: dict[MailOpened, None] = {}
        for raw in events:
            # An agent can create any name here. Below 19 digits the number fits into an INTEGER of SQLite.
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
