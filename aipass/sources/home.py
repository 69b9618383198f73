"""The home source: reports that the root or `.aipass` was moved or removed, so that no engine continues without its ledger."""

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

#: The paths are compared this often in any case: inotify does not report every move.
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
    """The root, `.aipass`, the ledger or the engine's lock file was moved or removed. `reason`: a message that names the path."""

    reason: str


class Home:
    """Watches the root, `.aipass`, the ledger and the engine's lock file; reports the first that is moved or removed, then ends."""

    name = "home"
    urgent = True

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # Not `.aipass` alone: `git clean` beside a working engine may leave that folder and remove the files in it.
        self._places = (layout.root, layout.state, layout.ledger, layout.engine_lock)
        self._known = {place: _identity(place) for place in self._places}
        self._reader, self._writer = os.pipe()
        self._thread: threading.Thread | None = None

    def start(self, tell: Callable[[list[HomeGone]], None]) -> None:
        """Start the thread; `tell` gets at most one batch, with one `HomeGone`."""
        self._thread = threading.Thread(target=self._run, args=(tell,), name="home", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Call it once."""
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
            if kernel is not None:  # this user has no watches left: `LOOK_S` alone must do
                kernel.close()
            kernel = None
        try:
            while True:
                # With a timeout in any case: when a folder further up is moved, the kernel reports nothing for these watches.
                ready = dict(poll.poll(LOOK_S * 1000))
                if self._reader in ready:
                    return
                if kernel is not None:
                    # The events only wake this thread: the comparison of identities decides.
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
