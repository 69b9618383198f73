"""Questions to git about files as they are, which make it read them: filters that could run what agents wrote are passed by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.git import filters
from aipass.git.query import TIMEOUT_S, ask

if TYPE_CHECKING:
    from pathlib import Path


def ask_of_files(root: Path, *words: str, timeout: float = TIMEOUT_S) -> list[str]:
    """As `ask`. A file of a filter that is not started is compared as it is, and looks changed."""
    top = ask(root, "rev-parse", "--show-toplevel")
    if not top:
        return []
    entries = ask(root, *filters.WORDS)
    found = filters.judged(entries, root, type(root)(top[0].removesuffix("\n")))
    # In a submodule git would start another git, with filters of that.
    return ask(root, words[0], "--ignore-submodules=all", *words[1:], env=found.passing(), timeout=timeout)
