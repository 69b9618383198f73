"""What of the user's own a CLI finds in its agent's folder: linked, or copied. That folder is the agent's to fill."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aipass.dispatch.driver import Share

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def furnish(state: Path, shares: Iterable[Share]) -> None:
    """Put the shares in their places; what stands there by the CLI's own doing stays.

    Raises OSError where the agent has put something else in a folder's place: nothing is ever made through a link.
    """
    for share in shares:
        source = Path(share.source).expanduser()
        if share.text is None and not source.exists():
            continue
        *folders, name = share.name.split("/")
        with _folder(state, folders) as handle:
            if share.text is not None:
                _write(share.text, name, handle)
            elif share.copied:
                _copy(source, name, handle)
            else:
                _link(source, name, handle)


@contextmanager
def _folder(state: Path, names: Iterable[str]) -> Iterator[int]:
    handle = os.open(state, _FOLDER)
    try:
        for name in names:
            try:
                os.mkdir(name, 0o700, dir_fd=handle)
            except FileExistsError:
                pass
            inner = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _link(source: Path, name: str, folder: int) -> None:
    try:
        if os.readlink(name, dir_fd=folder) == str(source):
            return
        os.unlink(name, dir_fd=folder)  # a link of before; what the CLI has put there itself is no link
    except FileNotFoundError:
        pass
    except OSError:
        return
    os.symlink(source, name, dir_fd=folder)


def _copy(source: Path, name: str, folder: int) -> None:
    try:
        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime >= source.stat().st_mtime:
            return
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    with source.open("rb") as file, _new(name, folder) as target:
        shutil.copyfileobj(file, target)


def _write(text: str, name: str, folder: int) -> None:
    """By rename: a CLI that runs may just be reading it."""
    half = f".{name}.{os.urandom(4).hex()}"
    with _new(half, folder) as target:
        target.write(text.encode())
    os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)


def _new(name: str, folder: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(name, flags, 0o600, dir_fd=folder), "wb")
