"""The files that git takes its configuration from, outside a repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aipass.git.ask import ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def files(root: Path) -> Iterator[str]:
    """Absolute paths: the person's own files, whether they are there or not, and those that any file of configuration includes."""
    home = os.path.expanduser("~")
    if (named := os.environ.get("GIT_CONFIG_GLOBAL")) is not None:
        own = [named] if named else []
    else:
        xdg = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        own = [os.path.join(home, ".gitconfig"), os.path.join(xdg, "git", "config")]
    said = ask(root, "config", "--list", "-z", "--show-origin", "--includes", bare=True, hooks=True)
    found = []
    for origin, entry in zip(said[::2], said[1::2], strict=False):
        file, (name, _, value) = origin.removeprefix("file:"), entry.partition("\n")
        found.append(file)
        if name.startswith(("include.", "includeif.")):
            found.append(os.path.normpath(os.path.join(os.path.dirname(file), os.path.expanduser(value))))
    # What is told by a relative path lies in the repository, whose own files are watched anyway.
    yield from dict.fromkeys(one for one in (*own, *found) if os.path.isabs(one))
