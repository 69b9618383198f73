"""Where state files stand: the folders, opened through no link, what is written there, and where the unusable is kept.

All of it goes by folder descriptors: an agent may put anything in the place of a folder at any moment.
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

#: What was replaced, or is just being written, until it has its name or is gone: `.local.json.<8 hex digits>`.
HALF = re.compile(r"\.(passport|local|observations)\.json\.[0-9a-f]{8}(?:\.aside)?")
#: Where is kept what cannot be used, below the root.
ASIDE = ".aipass/quarantine/trinity"
#: Of what one agent saved and nobody can use, so many are kept, the newest, and so many bytes.
MOST_ASIDE, MAX_ASIDE_BYTES = 200, 100_000_000
#: Nobody measures what lies in a folder that stood in a file's place; so many are kept.
MOST_ASIDE_FOLDERS = 3
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE, _OURS = 0o755, 0o700
#: The contents that were kept last, by agent: a program that saves the same rubbish again and again fills no disk.
MOST_KNOWN = 1_000


class Places:
    """The state folders of all agents. `homes`: each agent's, relative to the root."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.homes: Mapping[str, str] = {}
        self._kept: dict[tuple[str, bytes], str] = {}

    def names(self, agent: str) -> list[str]:
        """The folders that lead from the root to an agent's state files."""
        return [*(name for name in self.homes[agent].split("/") if name not in {"", "."}), FOLDER]

    def path(self, agent: str) -> Path:
        """An agent's state folder, by its name."""
        return self._layout.root.joinpath(*self.names(agent))

    @contextmanager
    def folder(self, agent: str) -> Iterator[int]:
        """A descriptor of an agent's state folder, which is made, and made writable, where it is not. Raises OSError."""
        with held.folder(self._layout.root, self.names(agent), make=True, mode=_MODE, across=True) as folder:
            mode = os.fstat(folder).st_mode
            if mode & _OURS != _OURS:
                os.fchmod(folder, stat.S_IMODE(mode) | _OURS)
            yield folder

    @contextmanager
    def above(self, agent: str) -> Iterator[int]:
        """A descriptor of the folder that holds an agent's state folder. Raises OSError."""
        with held.folder(
            self._layout.root, self.names(agent)[:-1], make=True, mode=_MODE, across=True
        ) as folder:
            yield folder

    @contextmanager
    def _aside(self, agent: str) -> Iterator[int]:
        with held.folder(self._layout.root, (*ASIDE.split("/"), agent), make=True) as folder:
            yield folder

    # -- setting aside ---------------------------------------------------------------------------------------------

    def set_aside(self, agent: str, name: str, folder: int, standing: str | None = None) -> str:
        """Take away what stands there, whatever it is; returns where it is now, relative to the root.

        `standing`: its name there, where that is another than it is to be kept by.
        """
        stamp = f"{time.time_ns()}-{name}"
        with self._aside(agent) as target:
            try:
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=target)
            except OSError as exc:
                if exc.errno not in {errno.EXDEV, errno.EACCES, errno.EPERM}:
                    raise
                # The home is on another disk, or it is a folder that may not be moved: beside it, then.
                os.rename(standing or name, stamp, src_dir_fd=folder, dst_dir_fd=folder)
                return "/".join((self.homes[agent], *(() if name == FOLDER else (FOLDER,)), stamp))
            _thin(target)
        return f"{ASIDE}/{agent}/{stamp}"

    def kept(self, agent: str, where: str) -> bytes | None:
        """The content of what was set aside; None where it cannot be read there. Raises FaultError."""
        try:
            with self._aside(agent) as folder:
                return content(where.rpartition("/")[2], folder)
        except OSError:
            return None  # beside its place, or gone

    def keep(self, agent: str, name: str, data: bytes) -> str:
        """Keep a content that stands nowhere any more; returns where, relative to the root."""
        stamp = f"{time.time_ns()}-{name}"
        with self._aside(agent) as folder:
            put(stamp, data, folder)
            _thin(folder)
        return self.once(agent, f"{ASIDE}/{agent}/{stamp}", data)

    def once(self, agent: str, where: str, data: bytes) -> str:
        """Where a content is kept, of which the same may be kept already: then it is there once."""
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
    """Let the oldest go of what was set aside: a program that saves rubbish without end fills no disk."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    found.sort(reverse=True)
    total = folders = 0
    for place, (name, status) in enumerate(found):
        total += status.st_blocks * 512
        folders += stat.S_ISDIR(status.st_mode)
        is_much = total > MAX_ASIDE_BYTES or (stat.S_ISDIR(status.st_mode) and folders > MOST_ASIDE_FOLDERS)
        if place >= MOST_ASIDE or (place and is_much):
            with suppress(OSError):  # a mount, or somebody who makes new files there as fast as they go
                held.remove(folder, name)


def content(name: str, folder: int) -> bytes:
    """What stands in a file. Raises FileNotFoundError, and FaultError where it is no file that can be read."""
    try:
        handle = os.open(name, READ, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise FaultError("it is a symbolic link; it must be a plain file") from None
        if exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}:
            raise  # that says nothing of the file
        raise FaultError(f"it cannot be read ({exc.strerror}); it must be a plain file") from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            raise FaultError(
                f"it is {'a folder' if stat.S_ISDIR(kind) else 'no plain file'}; it must be a plain file"
            )
        return all_of(handle)
    finally:
        os.close(handle)


def is_written(name: str, folder: int) -> bool:
    """Whether anybody has a plain file open for writing; False where nobody can say."""
    try:
        handle = os.open(name, READ, dir_fd=folder)
    except OSError:
        return False
    try:
        return bool(writers.is_written(handle))
    finally:
        os.close(handle)


def all_of(handle: int) -> bytes:
    """What an open file holds, up to one byte more than it may."""
    os.lseek(handle, 0, os.SEEK_SET)
    with open(handle, "rb", closefd=False) as file:
        return file.read(MAX_BYTES + 1)


def put(name: str, data: bytes, folder: int) -> None:
    """Write a file whole or not at all."""
    os.rename(write_half(name, data, folder), name, src_dir_fd=folder, dst_dir_fd=folder)


def write_half(name: str, data: bytes, folder: int) -> str:
    """Write a file under a name of its own, which is returned."""
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
