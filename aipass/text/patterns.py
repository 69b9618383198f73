"""Patterns of paths for `owns`, rules, plans and checks: the matcher of the fence, so that all of them agree."""

from __future__ import annotations

from aipass.supervisor.fence.glob import Globs as Patterns
from aipass.supervisor.fence.glob import OneOf, compile_line, elements, segments_of

#: PATH_MAX of Linux is 4096 bytes; no path of a repository needs a longer pattern.
MAX_CHARACTERS = 2000

__all__ = ["Patterns", "check"]


def check(pattern: str) -> str:
    """Return `pattern` unchanged if it is valid. Raises ValueError that says what is wrong with it."""
    if not pattern.strip():
        raise ValueError("an empty pattern matches nothing; write a path like `src/` or `**/*.py`")
    if "\0" in pattern or "\n" in pattern:
        raise ValueError("a pattern is one line without NUL")
    if len(pattern) > MAX_CHARACTERS:
        raise ValueError(f"a pattern has at most {MAX_CHARACTERS} characters")
    if ".." in pattern.split("/"):
        raise ValueError("a path of the repository never contains `..`; write the path from the root")
    if compile_line(pattern) is None:
        raise ValueError("it matches nothing; write a path like `src/` or `**/*.py`")
    for part in segments_of(pattern).parts:
        for one in elements(part or ""):
            if isinstance(one, OneOf) and any(low > high for low, high in one.ranges):
                raise ValueError(f"`{part}` has a range whose end comes before its start; write `[a-z]`")
    return pattern
