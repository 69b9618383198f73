"""Messages as files: in the mail folder of a live run, and in `.aipass/mail` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.features.messages import render
from aipass.features.messages.read_receipts import MAIL
from aipass.supervisor import held

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


class MailFiles:
    """Writes and removes message files. Every method is idempotent, because effects run again after a crash."""

    def __init__(self, layout: Layout, ledger: Ledger) -> None:
        self._layout, self._ledger = layout, ledger

    def put(self, run: int, message: int) -> None:
        """Write a message to the mail folder of a live run, atomically; an existing file stays unchanged."""
        row = self._ledger.one("message", {"id": message})
        place = self._layout.run(run) / MAIL
        if row is not None and not (place / f"{message}.md").exists():
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", render.whole(row))

    def file(self, recipient: str, message: int) -> None:
        """Write a message to `.aipass/mail/<recipient>/` for people. aipass never reads it there."""
        row = self._ledger.one("message", {"id": message})
        if row is not None:
            place = self._layout.mail / recipient
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.write_atomic(place / f"{message}.md", render.whole(row))

    def remove(self, message: int, recipient: str) -> None:
        """Remove all files of a forgotten message."""
        # Ended runs as well: their folders are kept for a while.
        (self._layout.mail / recipient / f"{message}.md").unlink(missing_ok=True)
        for path in self._layout.runs.glob(f"*/{MAIL}/{message}.md"):
            path.unlink(missing_ok=True)
