"""The remover: moves a folder out of reach immediately, by a rename, and deletes its content in a separate thread.

Agents decide the size and depth of their folders, so the engine's thread must not wait for a deletion. The next engine
continues with what this one leaves.
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

STOP_WAIT_S = 1.0


class Remover:
    """Removes files and folders. All methods can be called from any thread; `remove` is idempotent."""

    def __init__(self, layout: Layout) -> None:
        self._place, self._state = layout.state / "gone", layout.state
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock, self._is_over = threading.Lock(), threading.Event()

    def sweep(self) -> None:
        """Continue the removals that the previous engine did not finish."""
        try:
            with held.folder(self._place) as place:
                left = os.listdir(place)
        except OSError:
            return
        for name in left:
            self._dig(self._place / name)

    def remove(self, path: Path) -> bool:
        """Remove a path; returns True if nothing is there any more. Links are not followed.

        When this returns, the path is free. The content of a folder is deleted later, in the thread of the remover.
        """
        try:
            with held.above(path) as (folder, name):
                return self.remove_in(folder, name)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def prune(self, folder: Path, before: float, *, depth: int = 1) -> int:
        """Remove the entries of a folder that are older than `before` (seconds since the epoch); returns how many.

        `depth` 2: the entries of its folders instead, as where each agent has one. A folder that does not exist has none.
        """
        try:
            entries = [entry for entry in folder.iterdir() if not entry.is_symlink()]
        except OSError:
            return 0
        if depth > 1:
            return sum(self.prune(entry, before, depth=depth - 1) for entry in entries if entry.is_dir())
        removed = 0
        for entry in entries:
            with contextlib.suppress(OSError):  # somebody else has just removed it
                removed += entry.lstat().st_mtime < before and self.remove(entry)
        return removed

    def remove_in(self, folder: int, name: str) -> bool:
        """Remove an entry of a folder that is open, as `remove` does for a path. `folder`: its file descriptor."""
        # By a descriptor, an agent cannot replace the folder by a link between a check and the removal.
        for _ in range(2):
            try:
                return self._remove_in(folder, name)
            except PermissionError:
                # An agent took the write permission of the owner from it, or from its folder. We are that owner.
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
                    pass  # replaced by a folder since the check
            try:
                os.rmdir(name, dir_fd=folder)
                return True
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Random, because two removals can have the same name, and because an agent must not guess it.
            new = os.urandom(8).hex()
            held.make_folders(self._place, self._state)
            with held.folder(self._place) as place:
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=place)
        except FileNotFoundError:
            return True
        self._dig(self._place / new)
        return True

    def stop(self) -> None:
        """End the thread. Waits at most STOP_WAIT_S; the next engine removes the rest."""
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
