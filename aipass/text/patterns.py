"""Patterns as `owns`, rules, plans and checks read them: the fence's own function, so that all of them agree."""

from __future__ import annotations

from aipass.supervisor.fence.glob import Globs as Patterns
from aipass.supervisor.fence.glob import OneOf, compile_line, elements, segments_of

#: No path of a repository needs a longer one.
MAX_CHARACTERS = 2000

__all__ = ["Patterns", "check"]


def check(pattern: str) -> str:
    """`pattern`, if it is one.

    Raises ValueError that says what is wrong with it.
    """
    if not pattern.strip():
        raise ValueError("an empty pattern matches nothing; write a path like `src/` or `**/*.py`")
    if "\0" in pattern or "\n" in pattern:
        raise ValueError("a pattern is one line without NUL")
    if len(pattern) > MAX_CHARACTERS:
        raise ValueError(f"a pattern has at most {MAX_CHARACTERS} characters")
    if ".." in pattern.split("/"):
        raise ValueError("no path of the repository has `..` in it; write it as it is from the root")
    if compile_line(pattern) is None:
        raise ValueError("it matches nothing; write a path like `src/` or `**/*.py`")
    for part in segments_of(pattern).parts:
        for one in elements(part or ""):
            if isinstance(one, OneOf) and any(low > high for low, high in one.ranges):
                raise ValueError(f"`{part}` has a range whose end comes before its start; write `[a-z]`")
    return pattern
