"""The part of the inbox in `aipass status`: the number of rejected files."""

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

#: From this length on the name of a note may have been cut to fit the filesystem's limit of 255 bytes.
LONG_NAME = 200
#: Limit for folders and notes that are counted, so that a huge inbox cannot slow `aipass status` down.
MOST_COUNTED = 10_000


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return a line of `attention` if files were rejected, else nothing."""
    del ledger
    if not (number := _rejected(layout)):
        return {}
    told = f"inbox/ has {count(number, 'rejected file')}; `*.rejected.json` beside each has the reason and the remedy"
    return {"attention": [told]}


def show(found: dict[str, Any]) -> list[str]:
    """Return no lines: this part has only the line of `attention`."""
    del found
    return []


def _rejected(layout: Layout) -> int:
    """The number of files in the inbox that have a note with the reason of their rejection."""
    # Both limits: an inbox may have many folders without notes, or one folder with many.
    folders = islice(os.walk(layout.inbox), MOST_COUNTED)
    found = (Path(folder, name) for folder, _, names in folders for name in names if name.endswith(REJECTED))
    notes = islice(found, MOST_COUNTED)
    # A note counts only while its file exists. For a long name that cannot be checked: the name of the note may be cut.
    return sum(
        1 for note in notes if os.path.lexists(str(note).removesuffix(REJECTED)) or len(note.name) > LONG_NAME
    )
