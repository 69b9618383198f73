"""Files of the user that a CLI finds in its agent's state folder, as links or copies.

The agent may write that folder, so nothing in it is trusted: every step uses directory handles and follows no link.
"""

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
    """Create or refresh the shares in the agent's state folder; idempotent.

    A file that the CLI itself put there is kept until the user's file is newer. Raises OSError if the agent has replaced a folder
    by something else, such as a link.
    """
    for share in shares:
        source = Path(share.source).expanduser()
        if share.text is None and not source.exists():
            _forget(state, share.name)
            continue
        # Without a sandbox nothing protects the target of a link, so such a run gets a copy of the user's file.
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
        os.unlink(name, dir_fd=folder)  # a link to an earlier source
    except FileNotFoundError:
        pass
    except OSError:
        # A CLI that saves a renewed sign-in by rename replaces the link by a file of its own. That file is kept until
        # the user's is newer, which means that the user has signed in again.
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) or found.st_mtime >= source.stat().st_mtime:
            return
        os.unlink(name, dir_fd=folder)
    os.symlink(source, name, dir_fd=folder)


def _copy(source: Path, name: str, folder: int) -> None:
    """Copy the user's file if it has changed since the last copy."""
    found = source.stat()
    # Time and size of the source are kept in a file beside the copy: the copy's own time changes when the CLI writes it.
    mark = f"{found.st_mtime_ns} {found.st_size}"
    try:
        # O_NONBLOCK: the agent may have put a named pipe there, whose open would block the engine.
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
    """Remove the copy of a file that the user has removed: after a sign-out no agent must stay signed in."""
    *folders, name = share.split("/")
    path = state.joinpath(*folders)
    # Without a mark the file is not a copy of ours but the CLI's own.
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
    """Write a file atomically, by rename: a running CLI may read it at this moment."""
    half = f".{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(half, flags, 0o600, dir_fd=folder), "wb") as target:
            shutil.copyfileobj(content, target)
        os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):  # the temporary file may not exist yet
            os.unlink(half, dir_fd=folder)
        raise
