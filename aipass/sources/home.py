"""The home source: tells when the root or the engine's own folder is no longer where it was, so that no engine goes on without its record."""

from __future__ import annotations

import os
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aipass.sources import inotify

if TYPE_CHECKING:
    from collections.abc import Callable

    from aipass.workspace.layout import Layout

#: Where the kernel does not tell of it, it is looked for this often.
LOOK_S = 10.0
_MASK = (
    inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_ONLYDIR
)


@dataclass(frozen=True, slots=True)
class HomeGone:
    """The root, or `.aipass`, was moved or removed. `reason` is a whole sentence."""

    reason: str


class Home:
    """Watches the root, `.aipass`, the ledger and the hold of the engine for their move or end.

    A `git clean` beside a working engine may leave `.aipass` (it is being written to) and take all that was in it.
    """

    name = "home"
    urgent = True

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._places = (layout.root, layout.state, layout.ledger, layout.engine_lock)
        self._known = {place: _identity(place) for place in self._places}
        self._reader, self._writer = os.pipe()
        self._thread: threading.Thread | None = None

    def start(self, tell: Callable[[list[HomeGone]], None]) -> None:
        """Begin to observe."""
        self._thread = threading.Thread(target=self._run, args=(tell,), name="home", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        os.close(self._writer)
        if self._thread is not None:
            self._thread.join()
        os.close(self._reader)

    def _run(self, tell: Callable[[list[HomeGone]], None]) -> None:
        kernel = None
        poll = select.poll()
        poll.register(self._reader, select.POLLIN | select.POLLHUP)
        try:
            kernel = inotify.Inotify()
            for place in (self._layout.root.parent, self._layout.root, self._layout.state):
                kernel.add(os.fsencode(place), _MASK)
            poll.register(kernel.descriptor, select.POLLIN)
        except OSError:
            if kernel is not None:  # there are no watches left
                kernel.close()
            kernel = None
        try:
            while True:
                # From time to time in any case: of a folder further up that is moved the kernel tells nothing here.
                ready = dict(poll.poll(LOOK_S * 1000))
                if self._reader in ready:
                    return
                if kernel is not None:
                    kernel.read()
                gone = next((place for place in self._places if _identity(place) != self._known[place]), None)
                if gone is not None:
                    tell([HomeGone(f"{gone} was moved or removed while the engine ran")])
                    return
        finally:
            if kernel is not None:
                kernel.close()


def _identity(place: os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_dev, found.st_ino
