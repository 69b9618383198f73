"""The rejection note beside a dropped file that cannot be used: `<name>.rejected.json`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from aipass.event import printable
from aipass.supervisor import held
from aipass.workspace.layout import rejection_beside

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout


def reject(layout: Layout, path: str, reason: str, remedy: str) -> str:
    """Write the note beside a rejected file; returns the outcome in words.

    Idempotent; raises OSError if the note cannot be written.
    """
    note = rejection_beside(layout.root / path)
    if not os.path.lexists(layout.root / path):
        return "the file is gone already"
    text = json.dumps({"file": printable(path), "reason": reason, "remedy": remedy}, indent=2) + "\n"
    try:
        if held.read(note, len(text) * 4 + 4) == text.encode():
            # Each reload looks at all files again; a new note would be a new event each time.
            return f"rejected: {reason}"
    except OSError:
        pass  # there is no note yet
    held.write_atomic(note, text)
    if not os.path.lexists(layout.root / path):
        # The file was removed between the check and the write (race): a note without its file would confuse people.
        with held.above(note) as (folder, name):
            held.remove(folder, name)
        return "the file is gone already"
    return f"rejected: {reason}"
