"""The inbox in `aipass status`: rejected files."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipass.text.units import count
from aipass.workspace.layout import REJECTED

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

LONG_NAME = 200
#: Of more nobody needs to know how many.
MOST_COUNTED = 10_000


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """A line of attention where files were rejected."""
    del ledger
    if not (number := _rejected(layout)):
        return {}
    told = f"{count(number, 'file')} in inbox/ cannot be used; `*.rejected.json` beside each says why and what to do"
    return {"attention": [told]}


def show(found: dict[str, Any]) -> list[str]:
    """Nothing besides the line of attention."""
    del found
    return []


def _rejected(layout: Layout) -> int:
    """How many files of the inbox have a note beside them that says why they are not taken."""
    folders = islice(os.walk(layout.inbox), MOST_COUNTED)
    found = (Path(folder, name) for folder, _, names in folders for name in names if name.endswith(REJECTED))
    notes = islice(found, MOST_COUNTED)
    # A name that was too long for the note's is cut in it.
    return sum(
        1 for note in notes if os.path.lexists(str(note).removesuffix(REJECTED)) or len(note.name) > LONG_NAME
    )
