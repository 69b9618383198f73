"""Git queries that read files of the working tree, without the filters that could run code of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.git import filters
from aipass.git.query import TIMEOUT_S, ask

if TYPE_CHECKING:
    from pathlib import Path


def ask_of_files(root: Path, *words: str, timeout: float = TIMEOUT_S) -> list[str]:
    """Run git as `query.ask` does, with unsafe filters disabled. A file of such a filter is compared unfiltered, so it looks changed."""
    top = ask(root, "rev-parse", "--show-toplevel")
    if not top:
        return []
    entries = ask(root, *filters.WORDS)
    found = filters.judged(entries, root, type(root)(top[0].removesuffix("\n")))
    # For a submodule git would start another git, which uses that repository's filters unchecked.
    return ask(root, words[0], "--ignore-submodules=all", *words[1:], env=found.passing(), timeout=timeout)
