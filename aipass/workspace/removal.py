"""What is to be removed and may be large: moved out of everybody's reach at once, and removed by a thread of its own.

Agents decide how much lies in their folders, and how it is nested: the engine's thread never waits for its removal. What an engine leaves
there the next one goes on with.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
from typing import TYPE_CHECKING

from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

    from aipass.workspace.layout import Layout

#: A folder of so many entries is emptied at once: less than a thread costs.
FEW = 20
STOP_WAIT_S = 1.0


class Remover:
    """Takes what is to be removed, from any thread."""

    def __init__(self, layout: Layout) -> None:
        self._place, self._state = layout.state / "gone", layout.state
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock, self._is_over = threading.Lock(), threading.Event()

    def sweep(self) -> None:
        """Go on with what an engine before has left."""
        try:
            with held.folder(self._place) as place:
                left = os.listdir(place)
        except OSError:
            return
        for name in left:
            self._dig(self._place / name)

    def remove(self, path: Path) -> bool:
        """Have what stands at a path gone at once; whether it is. Nothing there is fine. Links are not followed."""
        try:
            with held.above(path) as (folder, name):
                return self.remove_in(folder, name)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def remove_in(self, folder: int, name: str) -> bool:
        """The same, by a name in a folder that is held."""
        for _ in range(2):
            try:
                return self._remove_in(folder, name)
            except PermissionError:
                # Whoever left it has closed it, or the folder it lies in, to its owner as well: that is us.
                with contextlib.suppress(OSError):
                    os.fchmod(folder, stat.S_IMODE(os.fstat(folder).st_mode) | 0o700)
                    held.let_write(folder, name)
            except FileNotFoundError:
                return True
            except OSError:
                return False
        return False

    def _remove_in(self, folder: int, name: str) -> bool:
        try:
            if not held.is_folder(folder, name):
                try:
                    os.unlink(name, dir_fd=folder)
                    return True
                except IsADirectoryError:
                    pass  # it has become one just now
            try:
                os.rmdir(name, dir_fd=folder)
                return True
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            new = os.urandom(8).hex()
            held.make_folders(self._place, self._state)
            with held.folder(self._place) as place:
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=place)
        except FileNotFoundError:
            return True
        self._dig(self._place / new)
        return True

    def stop(self) -> None:
        """End soon, whatever is left."""
        self._is_over.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(STOP_WAIT_S)

    def _dig(self, path: Path) -> None:
        with self._lock:
            if self._thread is None and not self._is_over.is_set():
                self._thread = threading.Thread(target=self._run, name="graveyard", daemon=True)
                self._thread.start()
        self._waiting.put(path)

    def _run(self) -> None:
        while (path := self._waiting.get()) is not None and not self._is_over.is_set():
            held.try_remove_at(path, self._is_over.is_set)
