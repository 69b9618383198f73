"""Folders below one that is trusted, opened step by step and never through a link: an agent may have put one there."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def opened(top: Path | str, names: Iterable[str], *, make: bool = True, mode: int = 0o700) -> Iterator[int]:
    """A descriptor of the folder `top`/names, made where it is missing. Raises OSError where something else is in its way."""
    handle = os.open(top, FLAGS)
    try:
        for name in names:
            if make:
                try:
                    os.mkdir(name, mode, dir_fd=handle)
                except FileExistsError:
                    pass
            inner = os.open(name, FLAGS, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)
