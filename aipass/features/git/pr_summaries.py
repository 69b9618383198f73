"""Open PRs in short, for `aipass status`: read without the model of a whole record, whose library takes longer to start."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from aipass.supervisor import held

if TYPE_CHECKING:
    from pathlib import Path

#: In `<git common dir>/aipass`; and the version of a record's fields.
FOLDER, SCHEMA = "prs", 1
#: A record has the paths of its PR: some 100,000 of them.
MAX_RECORD_BYTES = 16_000_000


def numbers(folder: Path) -> list[int]:
    """The numbers of all records in a folder, in order. Raises OSError, but not where there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{1,15}\.json", name))


def summaries(shared: Path) -> list[dict[str, Any]]:
    """`id`, `agent` and `title` of each open PR, oldest first. A record that cannot be used is left out, as in `aipass pr list`."""
    found = []
    for number in numbers(shared / FOLDER):
        try:
            with held.open_regular(shared / FOLDER / f"{number}.json") as file:
                record = json.loads(file.read(MAX_RECORD_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or record.get("schema", SCHEMA) != SCHEMA:
            continue
        one = {"id": record.get("id"), "agent": record.get("agent"), "title": record.get("title")}
        if record.get("state") == "open" and [type(value) for value in one.values()] == [int, str, str]:
            found.append(one)
    return found
