"""SQL by name: the statements in `queries.sql` of the ledger and of every room and feature, read once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_SQL = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)", re.MULTILINE)


@cache
def statements() -> dict[str, str]:
    """Every statement by its name; raises ValueError where two files have one name."""
    found: dict[str, str] = {}
    for path in sources():
        for name, text in parse(path.read_text("utf-8")).items():
            if name in found:
                raise ValueError(f"{path}: the statement {name} is in another file as well")
            found[name] = text
    return found


def sources() -> list[Path]:
    """The files that hold statements: one of the ledger, and one beside the code that uses it."""
    top = Path(__file__).parents[1]
    return [
        _SQL / "queries.sql",
        *sorted(top.glob("*/queries.sql")),
        *sorted(top.glob("features/*/queries.sql")),
    ]


def parse(text: str) -> dict[str, str]:
    """Statements by name; raises ValueError where a name comes twice or a purpose is missing."""
    found: dict[str, str] = {}
    marks = list(_NAME.finditer(text))
    for mark, following in zip(marks, [*marks[1:], None][: len(marks)], strict=True):
        name = mark[1]
        if name in found:
            raise ValueError(f"the statement {name} is there twice")
        if not mark[2].strip():
            raise ValueError(f"the statement {name} does not say its purpose")
        found[name] = text[mark.end() : following.start() if following else len(text)].strip()
    return found


def schema() -> str:
    """The full schema of the newest version."""
    return (_SQL / "schema.sql").read_text("utf-8")


def migrations() -> list[str]:
    """Scripts that lead from version n to n + 1, in order; the first makes version 1."""
    folder = _SQL / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]
