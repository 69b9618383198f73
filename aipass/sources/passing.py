"""Names of files that are unfinished, temporary or a tool's own: the list `passing.tsv`, with its sources. Pure, but for reading it once.

One list for inbox, rules and what is watched, so that a file that an editor makes for a moment is a task for none of them.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_suffix(".tsv")
KINDS = ("unfinished", "editor", "system")


class TemporaryName(NamedTuple):
    """One line. `how`: name, nocase, folder, beside, unsure; see the head of the list."""

    kind: str
    pattern: str
    how: frozenset[str]
    tool: str
    meaning: str
    source: str


@cache
def entries() -> tuple[TemporaryName, ...]:
    """The whole list, in its order."""
    kind, found = "", []
    for line in LIST.read_text("utf-8").splitlines():
        if line.startswith("# kind: "):
            kind = line.removeprefix("# kind: ")
        elif line and not line.startswith("# "):
            pattern, how, *rest = line.split("\t")
            found.append(TemporaryName(kind, pattern.replace("\\r", "\r"), frozenset(how.split(",")), *rest))
    return tuple(found)


@cache
def _compiled() -> tuple[tuple[re.Pattern[str], TemporaryName], ...]:
    used = (entry for entry in entries() if not entry.how & {"unsure", "beside"})
    return tuple(
        (re.compile(translate(e.pattern), re.IGNORECASE if "nocase" in e.how else 0), e) for e in used
    )


@cache
def _any_of() -> re.Pattern[str]:
    """All at once: nearly every name is none of them."""
    parts = (
        f"(?i:{translate(e.pattern)})" if "nocase" in e.how else translate(e.pattern) for _, e in _compiled()
    )
    return re.compile("|".join(parts))


@lru_cache(maxsize=10_000)
def find(name: str) -> TemporaryName | None:
    """The entry that a file's name matches; None for an ordinary name."""
    if len(name) > 255 or not _any_of().match(name):
        return None
    return next((entry for pattern, entry in _compiled() if pattern.match(name)), None)


@lru_cache(maxsize=10_000)
def find_folder(name: str) -> TemporaryName | None:
    """The entry that a folder's name matches: all in it is a tool's own."""
    found = find(name)
    return found if found is not None and "folder" in found.how else None


@cache
def controls() -> tuple[str, ...]:
    """Endings of the files beside which another one, without that ending, is unfinished."""
    return tuple("." + entry.pattern.rpartition(".")[2] for entry in entries() if "beside" in entry.how)


def control_of(name: str) -> str | None:
    """The name of the file that a control file stands beside; None where it is none. Both have an ending: `x.bin.aria2`."""
    for ending in controls():
        stem = name.removesuffix(ending)
        if stem != name and "." in stem.lstrip("."):
            return stem
    return None
