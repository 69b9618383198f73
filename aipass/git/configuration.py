"""The list of the files that git reads its configuration from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aipass.git.query import ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def files(root: Path) -> Iterator[str]:
    """Yield absolute paths, each once: the user's files (also missing ones), the repository's, and all files that these include."""
    home = os.path.expanduser("~")
    # A missing file of the user may appear later, and callers watch for that.
    if (named := os.environ.get("GIT_CONFIG_GLOBAL")) is not None:
        own = [named] if named else []
    else:
        xdg = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        own = [os.path.join(home, ".gitconfig"), os.path.join(xdg, "git", "config")]
    top = next(iter(ask(root, "rev-parse", "--show-toplevel", bare=True, hooks=True)), "").removesuffix("\n")
    said = ask(root, "config", "--list", "-z", "--show-origin", "--includes", bare=True, hooks=True)
    found = []
    for origin, entry in zip(said[::2], said[1::2], strict=False):
        if not origin.startswith("file:"):
            continue
        # Git prints relative paths as seen from the top of the working tree.
        file, (name, _, value) = os.path.join(top, origin.removeprefix("file:")), entry.partition("\n")
        found.append(os.path.normpath(file))
        # Also an include whose condition is false now, or whose file is missing: either may change later.
        if name.startswith(("include.", "includeif.")):
            found.append(os.path.normpath(os.path.join(os.path.dirname(file), os.path.expanduser(value))))
    yield from dict.fromkeys(one for one in (*own, *found) if os.path.isabs(one))
