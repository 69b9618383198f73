"""The SQL statements by name, read once from the `queries.sql` of the ledger, of each package and of each feature."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_SQL = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)\n((?:--[^\n]*\n)*)", re.MULTILINE)


@cache
def statements() -> dict[str, str]:
    """Return every statement by its name. Raises ValueError where two files use the same name."""
    found: dict[str, str] = {}
    for path in sources():
        for name, text in parse(path.read_text("utf-8")).items():
            if name in found:
                raise ValueError(
                    f"{path}: the statement `{name}` is in another file as well; rename one of them"
                )
            found[name] = text
    return found


def sources() -> list[Path]:
    """Return the files with statements: the ledger's own first, then those beside the code that uses them."""
    top = Path(__file__).parents[1]
    return [
        _SQL / "queries.sql",
        *sorted(top.glob("*/queries.sql")),
        *sorted(top.glob("features/*/queries.sql")),
    ]


def parse(text: str) -> dict[str, str]:
    """Return the statements in a text by name. Raises ValueError for a repeated name or a missing purpose."""
    found: dict[str, str] = {}
    marks = list(_NAME.finditer(text))
    for mark, following in zip(marks, [*marks[1:], None][: len(marks)], strict=True):
        name = mark[1]
        if name in found:
            raise ValueError(f"the statement `{name}` is there twice; rename one of them")
        if not mark[2].strip():
            raise ValueError(
                f"the statement `{name}` has no purpose; add a comment line below its `-- name:` line"
            )
        found[name] = text[mark.end() : following.start() if following else len(text)].strip()
    return found


def schema() -> str:
    """Return the complete schema of the newest version; a test compares it with the result of all migrations."""
    return (_SQL / "schema.sql").read_text("utf-8")


def migrations() -> list[str]:
    """Return the migration scripts in order; the one at index n leads from version n to n + 1."""
    folder = _SQL / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]
