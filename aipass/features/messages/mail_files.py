"""Messages as files: for the run that lives, and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.features.messages import render
from aipass.features.messages.read_receipts import MAIL
from aipass.supervisor import held

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


class MailFiles:
    """All of it may be done a second time after a crash."""

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self._layout, self._ledger = layout, ledger

    def put(self, run: int, message: int) -> None:
        """Let a run that lives find a message; a second time changes nothing."""
        row = self._ledger.one("message", {"id": message})
        place = self._layout.run(run) / MAIL
        if row is not None and not (place / f"{message}.md").exists():
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", render.whole(row))

    def file(self, recipient: str, message: int) -> None:
        """Let people see a message as a file, whomever it is to. Nothing reads it there."""
        row = self._ledger.one("message", {"id": message})
        if row is not None:
            place = self._layout.mail / recipient
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", render.whole(row))

    def remove(self, message: int, recipient: str) -> None:
        """Take a message that is to be forgotten from where it lies as a file."""
        (self._layout.mail / recipient / f"{message}.md").unlink(missing_ok=True)
        for path in self._layout.runs.glob(f"*/{MAIL}/{message}.md"):
            path.unlink(missing_ok=True)
