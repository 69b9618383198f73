"""The list of names of temporary and unfinished files, read once from `passing.tsv`.

Inbox, rules and the watched tree share one list, so a file that an editor makes for a moment is a task for none of them.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_suffix(".tsv")
#: The kinds of the list, in its order: it becomes another file; an editor's own; of the desktop or the disk.
KINDS = ("unfinished", "editor", "system")


class TemporaryName(NamedTuple):
    """One line of the list. `how` is a set of `name`, `nocase`, `folder`, `beside` and `unsure`; the head of the list explains them."""

    kind: str
    pattern: str
    how: frozenset[str]
    tool: str
    meaning: str
    source: str


@cache
def entries() -> tuple[TemporaryName, ...]:
    """Return every entry, also the unused ones, in the order of the file."""
    kind, found = "", []
    for line in LIST.read_text("utf-8").splitlines():
        if line.startswith("# kind: "):
            kind = line.removeprefix("# kind: ")
        elif line and not line.startswith("# "):
            pattern, how, *rest = line.split("\t")
            # A raw CR (macOS: `Icon\r`) would end the line here, and an editor could remove it.
            found.append(TemporaryName(kind, pattern.replace("\\r", "\r"), frozenset(how.split(",")), *rest))
    return tuple(found)


@cache
def _compiled() -> tuple[tuple[re.Pattern[str], TemporaryName], ...]:
    # `unsure` names are ordinary files as well: the list only documents them. `beside` needs the name of a second file.
    used = (entry for entry in entries() if not entry.how & {"unsure", "beside"})
    return tuple(
        (re.compile(translate(e.pattern), re.IGNORECASE if "nocase" in e.how else 0), e) for e in used
    )


@cache
def _any_of() -> re.Pattern[str]:
    """One pattern for all entries: nearly every name matches none, and then one comparison is enough."""
    parts = (
        f"(?i:{translate(e.pattern)})" if "nocase" in e.how else translate(e.pattern) for _, e in _compiled()
    )
    return re.compile("|".join(parts))


@lru_cache(maxsize=10_000)
def find(name: str) -> TemporaryName | None:
    """Return the first entry that matches a file's name; None for an ordinary name."""
    # 255 bytes is the longest name on common filesystems; a longer text is no name of a file.
    if len(name) > 255 or not _any_of().match(name):
        return None
    return next((entry for pattern, entry in _compiled() if pattern.match(name)), None)


@lru_cache(maxsize=10_000)
def find_folder(name: str) -> TemporaryName | None:
    """Return the entry that a folder's name matches; every file in such a folder is a tool's own. None for an ordinary folder."""
    found = find(name)
    return found if found is not None and "folder" in found.how else None


@cache
def controls() -> tuple[str, ...]:
    """Return the endings of control files: while `x.bin.aria2` exists, `x.bin` is unfinished."""
    return tuple("." + entry.pattern.rpartition(".")[2] for entry in entries() if "beside" in entry.how)


def control_of(name: str) -> str | None:
    """Return the name of the unfinished file that a control file belongs to; None for other files. Both have an ending: `x.bin.aria2`."""
    for ending in controls():
        stem = name.removesuffix(ending)
        if stem != name and "." in stem.lstrip("."):
            return stem
    return None
