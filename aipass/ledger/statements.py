"""SQL by name: the statements of `sql/queries.sql`, read once."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)", re.MULTILINE)


@cache
def statements() -> dict[str, str]:
    """Every statement of queries.sql by its name."""
    return parse((files("aipass.ledger") / "sql" / "queries.sql").read_text("utf-8"))


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
    return (files("aipass.ledger") / "sql" / "schema.sql").read_text("utf-8")


def migrations() -> list[str]:
    """Scripts that lead from version n to n + 1, in order; the first makes version 1."""
    folder = files("aipass.ledger") / "sql" / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]
