"""What of the user's own a CLI finds in its agent's folder: linked, or copied. That folder is the agent's to fill."""

from __future__ import annotations

import io
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aipass.supervisor import held

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.features.dispatch.driver import Share


def furnish(state: Path, shares: Iterable[Share], *, contained: bool = True) -> None:
    """Put the shares in their places; what stands there by the CLI's own doing stays, until the user's is newer.

    Where nothing contains the run it gets copies of the user's files, not links: but for those that it shall write, and
    folders. Raises OSError where the agent has put something else in a folder's place: nothing is ever made through a link.
    """
    for share in shares:
        source = Path(share.source).expanduser()
        if share.text is None and not source.exists():
            _forget(state, share.name)
            continue
        is_copy = share.copied or not (contained or share.writable or source.is_dir())
        *folders, name = share.name.split("/")
        with held.folder(state, folders, make=True) as handle:
            if share.text is not None:
                _write(share.text, name, handle)
            elif is_copy:
                _copy(source, name, handle)
            else:
                _link(source, name, handle)


def _link(source: Path, name: str, folder: int) -> None:
    try:
        if os.readlink(name, dir_fd=folder) == str(source):
            return
        os.unlink(name, dir_fd=folder)  # a link of before
    except FileNotFoundError:
        pass
    except OSError:
        # What the CLI has put there in the link's place is its own, until the user has signed in anew.
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) or found.st_mtime >= source.stat().st_mtime:
            return
        os.unlink(name, dir_fd=folder)
    os.symlink(source, name, dir_fd=folder)


def _copy(source: Path, name: str, folder: int) -> None:
    """A copy, made anew when the user's has changed since; beside it stands of what it is one."""
    found = source.stat()
    mark = f"{found.st_mtime_ns} {found.st_size}"
    try:
        handle = os.open(
            _mark(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
        try:
            known = os.read(handle, 100)
        finally:
            os.close(handle)
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        known = b""
    if known != mark.encode():
        with source.open("rb") as file:
            _put(file, name, folder)
        _write(mark, _mark(name), folder)


def _forget(state: Path, share: str) -> None:
    """What the user has no more, a copy has no more."""
    *folders, name = share.split("/")
    path = state.joinpath(*folders)
    if not os.path.lexists(path / _mark(name)):
        return
    with held.folder(state, folders, make=True) as handle:
        for one in (name, _mark(name)):
            try:
                os.unlink(one, dir_fd=handle)
            except FileNotFoundError:
                pass


def _mark(name: str) -> str:
    return f".{name}.copied"


def _write(text: str, name: str, folder: int) -> None:
    _put(io.BytesIO(text.encode()), name, folder)


def _put(content: BinaryIO, name: str, folder: int) -> None:
    """By rename: a CLI that runs may just be reading it, and half a file is none."""
    half = f".{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(half, flags, 0o600, dir_fd=folder), "wb") as target:
            shutil.copyfileobj(content, target)
        os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):  # it may not have come so far
            os.unlink(half, dir_fd=folder)
        raise
