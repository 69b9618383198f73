"""Beside a dropped file that cannot be used: a note that says why."""

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
    """Say beside a file why it was not used."""
    note = rejection_beside(layout.root / path)
    if not os.path.lexists(layout.root / path):
        return "it is gone already"
    text = json.dumps({"file": printable(path), "reason": reason, "remedy": remedy}, indent=2) + "\n"
    try:
        if held.read(note, len(text) * 4 + 4) == text.encode():
            return f"rejected: {reason}"  # it says so already: a reload looks at all of them again
    except OSError:
        pass
    held.write_atomic(note, text)
    if not os.path.lexists(layout.root / path):
        # Taken away meanwhile: a note beside nothing would puzzle whoever finds it.
        with held.above(note) as (folder, name):
            held.remove(folder, name)
        return "it is gone already"
    return f"rejected: {reason}"
