"""The mail folders of runs that live: a thread that tells when a run has opened a message and closed it again.

The kernel does not say who it was. The folder is the run's own, and aipass's other tools never look into it.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from aipass.sources import inotify

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.layout import Layout

logger = structlog.get_logger("aipass")

MAIL = "mail"
IN_CLOSE_NOWRITE = 0x10
_MASK = IN_CLOSE_NOWRITE | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW


@dataclass(frozen=True, slots=True)
class MailOpened:
    """A message in a run's mail folder was opened, and closed."""

    run: int
    message: int


class Postbox:
    """A source of what runs read. Everything but the engine's side happens in its own thread."""

    name = "mail"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tell: Callable[[list[Any]], None] = lambda _: None
        self._asked: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = os.pipe()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._inotify: inotify.Inotify | None = None
        self._run_of: dict[int, int] = {}

    def start(self, tell: Callable[[list[Any]], None]) -> None:
        """Begin to watch. Where there is no inotify, nobody can say what a run has opened, and it comes again."""
        self._tell = tell
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        try:
            self._inotify = inotify.Inotify()
        except (OSError, AttributeError):
            return
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ending = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def watch(self, run: int, *, lives: bool = True) -> None:
        """Look after a run's mail, or not any more."""
        self._asked.put((run, lives))
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_out, b"w")
        except OSError:
            pass  # it is awake already

    def _work(self) -> None:
        assert self._inotify is not None
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(self._inotify.descriptor, select.POLLIN)
        while not self._ending:
            poll.poll()
            self._take(self._inotify.read())
            try:
                os.read(self._wake_in, 4096)
            except BlockingIOError:
                pass
            while not self._asked.empty():
                self._watch(*self._asked.get())

    def _watch(self, run: int, lives: bool) -> None:
        assert self._inotify is not None
        if lives:
            try:
                watch = self._inotify.add(os.fsencode(self._layout.run(run) / MAIL), _MASK)
                self._run_of[watch] = run
            except OSError as exc:
                logger.warning("what a run reads of its mail is not seen", run=run, error=str(exc))
        for watch in [watch for watch, one in self._run_of.items() if one == run and not lives]:
            self._inotify.remove(watch)
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
