"""Files that make other programs run code merely by being there: the list `runs_code.tsv`, with its sources. Pure, but for reading it once."""

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
    """One line. `guarded`: only an `owns` that names it literally gives it; else agents edit it as ordinary work."""

    kind: str
    pattern: str
    what: str
    source: str
    guarded: bool


class CodeFileMatch(NamedTuple):
    """An entry that matches a path, and the part of the path that it names."""

    entry: CodeFile
    name: str


@cache
def entries() -> tuple[CodeFile, ...]:
    """The whole list, in its order."""
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
    #: Names that match at any depth, by the name.
    names: dict[str, CodeFile]
    #: All others, with their compiled patterns.
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
    """The guarded entry that names a path (its parts below the root), or a folder that it lies in."""
    return _find(parts, folder, guarded=True)


def listed(path: str) -> CodeFileMatch | None:
    """The entry that names a file's path below the root, guarded or not; guarded ones first."""
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
    """The shortest beginning of the path that the rule names, without what it leaves open at the front."""
    width = sum(segment is not None for segment in rule.segments)
    for end in range(1, len(parts) + 1):
        if rule.covers(parts[:end], folder or end < len(parts)):
            return "/".join(parts[max(0, end - width) : end])
    return "/".join(parts)
