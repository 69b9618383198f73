"""Files that make other programs run code merely by existing: `runs_code.tsv`, with its sources. Pure after one reading."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aipass.supervisor.fence.glob import compile_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aipass.supervisor.fence.glob import GlobRule

LIST = Path(__file__).with_suffix(".tsv")


class CodeFile(NamedTuple):
    """One line of the list. `guarded`: only an `owns` that names it literally gives access; else agents edit it as ordinary work."""

    kind: str
    pattern: str
    what: str
    source: str
    guarded: bool


class CodeFileMatch(NamedTuple):
    """An entry that matches a path, and the matching part of the path."""

    entry: CodeFile
    name: str


@cache
def entries() -> tuple[CodeFile, ...]:
    """The whole list, in file order. Raises OSError or ValueError where the file is missing or malformed."""
    kind = ""
    found = []
    for line in LIST.read_text("utf-8").splitlines():
        if line.startswith("# kind: "):
            kind = line.removeprefix("# kind: ")
        elif line and not line.startswith("#"):
            pattern, what, source, how = line.split("\t")
            found.append(CodeFile(kind, pattern, what, source, how == "guarded"))
    return tuple(found)


class _Index(NamedTuple):
    #: Entries that are plain names and match at any depth: one dictionary look-up per component.
    names: dict[str, CodeFile]
    #: All other entries, with their compiled patterns.
    rules: tuple[tuple[GlobRule, CodeFile], ...]


@cache
def _index(guarded: bool) -> _Index:
    names: dict[str, CodeFile] = {}
    rules = []
    for entry in entries():
        if entry.guarded is not guarded:
            continue
        name = entry.pattern.rstrip("/")
        if any(special in name for special in "*?[/"):
            rule = compile_line(entry.pattern)  # files only, where its end is open
            assert rule is not None, entry.pattern
            rules.append((rule, entry))
        else:
            names[name] = entry
    return _Index(names, tuple(rules))


def guarded(parts: Sequence[str], *, folder: bool = False) -> CodeFileMatch | None:
    """The guarded entry that matches a path (its parts below the root) or one of its parent folders."""
    return _find(parts, folder, guarded=True)


def listed(path: str) -> CodeFileMatch | None:
    """The entry that matches a file's path below the root; guarded entries take precedence."""
    parts = path.split("/")
    return _find(parts, False, guarded=True) or _find(parts, False, guarded=False)


def _find(parts: Sequence[str], folder: bool, *, guarded: bool) -> CodeFileMatch | None:
    names, rules = _index(guarded)
    for part in parts:
        if (entry := names.get(part)) is not None:
            return CodeFileMatch(entry, part)
    for rule, entry in rules:
        if rule.covers(parts, folder):
            return CodeFileMatch(entry, _matched(rule, parts, folder))
    return None


def _matched(rule: GlobRule, parts: Sequence[str], folder: bool) -> str:
    """The shortest leading part of the path that the rule matches, without components that it leaves open at the front."""
    width = sum(segment is not None for segment in rule.segments)
    for end in range(1, len(parts) + 1):
        if rule.covers(parts[:end], folder or end < len(parts)):
            return "/".join(parts[max(0, end - width) : end])
    return "/".join(parts)
