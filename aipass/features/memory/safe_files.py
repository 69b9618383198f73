"""Safe access to the state folders and their quarantine: every step uses a folder descriptor and follows no symbolic link.

An agent can replace a folder by a link at any moment; a path would then lead the engine to a file that the agent cannot write.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

from aipass.features.memory.document import MAX_BYTES, FaultError
from aipass.features.memory.model import FOLDER
from aipass.sources import writers
from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from aipass.workspace.layout import Layout

#: The temporary name of a file that is being written or was replaced: `.local.json.<8 hex digits>`.
HALF = re.compile(r"\.(passport|local|observations)\.json\.[0-9a-f]{8}(?:\.aside)?")
#: The quarantine of files that cannot be used, relative to the root.
ASIDE = ".aipass/quarantine/trinity"
#: The newest rejected files that are kept for each agent, and their size: an agent must not fill the disk.
MOST_ASIDE, MAX_ASIDE_BYTES = 200, 100_000_000
#: A folder can be in the place of a file. Its content is not measured, so only few are kept.
MOST_ASIDE_FOLDERS = 3
#: O_NONBLOCK: opening a FIFO that an agent made would block the thread.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE, _OURS = 0o755, 0o700
#: Fingerprints of quarantined contents that are remembered: the same content is then kept once (deduplication).
MOST_KNOWN = 1_000


class Places:
    """The state folders of all agents. `homes`: the home of each agent, relative to the root."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.homes: Mapping[str, str] = {}
        self._kept: dict[tuple[str, bytes], str] = {}

    def names(self, agent: str) -> list[str]:
        """Return the path components from the root to an agent's state folder."""
        return [*(name for name in self.homes[agent].split("/") if name not in {"", "."}), FOLDER]

    def path(self, agent: str) -> Path:
        """Return the path of an agent's state folder; only to look at, because a link may be on it."""
        return self._layout.root.joinpath(*self.names(agent))

    @contextmanager
    def folder(self, agent: str) -> Iterator[int]:
        """Yield a descriptor of an agent's state folder; makes it, and makes it writable for us. Raises OSError."""
        with held.folder(self._layout.root, self.names(agent), make=True, mode=_MODE, across=True) as folder:
            mode = os.fstat(folder).st_mode
            # An agent can take the write permission away from us, on purpose or not.
            if mode & _OURS != _OURS:
                os.fchmod(folder, stat.S_IMODE(mode) | _OURS)
            yield folder

    @contextmanager
    def above(self, agent: str) -> Iterator[int]:
        """Yield a descriptor of the folder that contains an agent's state folder; makes it. Raises OSError."""
        with held.folder(
            self._layout.root, self.names(agent)[:-1], make=True, mode=_MODE, across=True
        ) as folder:
            yield folder

    @contextmanager
    def _aside(self, agent: str) -> Iterator[int]:
        with held.folder(self._layout.root, (*ASIDE.split("/"), agent), make=True) as folder:
            yield folder

    # -- quarantine ------------------------------------------------------------------------------------------------

    def set_aside(self, agent: str, name: str, folder: int, standing: str | None = None) -> str:
        """Move a file, link or folder to the quarantine; returns its new path, relative to the root. Raises OSError.

        `standing`: its present name, where that differs from `name`.
        """
        stamp = f"{time.time_ns()}-{name}"
        with self._aside(agent) as target:
            try:
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=target)
            except OSError as exc:
                if exc.errno not in {errno.EXDEV, errno.EACCES, errno.EPERM}:
                    raise
                # The home is on another filesystem, or the folder is not ours to move: keep it beside its place.
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=folder)
                return "/".join((self.homes[agent], *(() if name == FOLDER else (FOLDER,)), stamp))
            _thin(target)
        return f"{ASIDE}/{agent}/{stamp}"

    def kept(self, agent: str, where: str) -> bytes | None:
        """Return the content of a quarantined file; None where it is not there. Raises FaultError."""
        try:
            with self._aside(agent) as folder:
                return content(where.rpartition("/")[2], folder)
        except OSError:
            return None  # kept beside its place, or removed since

    def keep(self, agent: str, name: str, data: bytes) -> str:
        """Write a content to the quarantine; returns its path, relative to the root. Raises OSError."""
        stamp = f"{time.time_ns()}-{name}"
        with self._aside(agent) as folder:
            put(stamp, data, folder)
            _thin(folder)
        return self.once(agent, f"{ASIDE}/{agent}/{stamp}", data)

    def once(self, agent: str, where: str, data: bytes) -> str:
        """Return where a content is kept, after removing `where` if an equal file is kept already (deduplication)."""
        key = agent, blake2b(data, digest_size=16).digest()
        before = self._kept.get(key)
        if before is not None and before != where and (self._layout.root / before).exists():
            with suppress(OSError), self._aside(agent) as folder:
                os.unlink(where.rpartition("/")[2], dir_fd=folder)
            return before
        self._kept[key] = where
        while len(self._kept) > MOST_KNOWN:
            del self._kept[next(iter(self._kept))]
        return where


def _thin(folder: int) -> None:
    """Remove the oldest quarantined files over the limits; the newest always stays."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    found.sort(reverse=True)
    total = folders = 0
    for place, (name, status) in enumerate(found):
        total += status.st_blocks * 512  # POSIX counts st_blocks in units of 512 bytes
        folders += stat.S_ISDIR(status.st_mode)
        is_much = total > MAX_ASIDE_BYTES or (stat.S_ISDIR(status.st_mode) and folders > MOST_ASIDE_FOLDERS)
        if place >= MOST_ASIDE or (place and is_much):
            with suppress(OSError):  # a mount, or a program that adds files as fast as they are removed
                held.remove(folder, name)


def content(name: str, folder: int) -> bytes:
    """Return a file's content, at most MAX_BYTES + 1. Raises FileNotFoundError, OSError, and FaultError for all but a plain file."""
    try:
        handle = os.open(name, READ, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise FaultError("it is a symbolic link; it must be a plain file") from None
        if exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}:
            raise  # this machine's problem, not a fault of the file: it must not be quarantined
        raise FaultError(f"it cannot be read ({exc.strerror}); it must be a plain file") from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            raise FaultError(
                f"it is {'a folder' if stat.S_ISDIR(kind) else 'a pipe, socket or device'}; it must be a plain file"
            )
        return all_of(handle)
    finally:
        os.close(handle)


def is_written(name: str, folder: int) -> bool:
    """Return whether a program has the file open for writing; False where the kernel gives no answer."""
    try:
        handle = os.open(name, READ, dir_fd=folder)
    except OSError:
        return False
    try:
        return bool(writers.is_written(handle))
    finally:
        os.close(handle)


def all_of(handle: int) -> bytes:
    """Return the content of an open file, at most MAX_BYTES + 1 bytes: the caller sees that it is too large."""
    os.lseek(handle, 0, os.SEEK_SET)
    with open(handle, "rb", closefd=False) as file:
        return file.read(MAX_BYTES + 1)


def put(name: str, data: bytes, folder: int) -> None:
    """Write a file atomically: by a rename. Raises OSError."""
    os.rename(write_half(name, data, folder), name, src_dir_fd=folder, dst_dir_fd=folder)


def write_half(name: str, data: bytes, folder: int) -> str:
    """Write a file under a temporary name, and return the name. Raises OSError, and leaves no file then."""
    half = f".{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(half, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
    except BaseException:
        with suppress(OSError):
            os.unlink(half, dir_fd=folder)
        raise
    return half
