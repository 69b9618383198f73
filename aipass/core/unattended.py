"""Requests that were left while no engine ran: whoever asked has gone on, so a refusal is told as a notice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aipass.ledger import Ledger

#: An id says when it was asked, in microseconds since the epoch (`requests.new_id`).
_ID = re.compile(r"r-([0-9a-f]{14})-[0-9a-f]+")
#: So many are waited for; of more the events tell.
MOST = 100


class UnattendedRequests:
    """Waits for what becomes of such requests. Used by the engine's thread."""

    def __init__(self, started: float) -> None:
        """`started`: when the engine was, in seconds since the epoch; who asks later waits for the reply."""
        self._started = started
        self._waiting: dict[str, str] = {}

    def note(self, name: str, verb: str) -> None:
        """A person's request has come."""
        asked = _ID.fullmatch(name)
        if asked is not None and int(asked[1], 16) < self._started * 1e6 and len(self._waiting) < MOST:
            self._waiting[name] = verb

    def refused(self, ledger: Ledger) -> Iterator[str]:
        """Those that were refused since this was asked last, in words."""
        for name, verb in list(self._waiting.items()):
            row = ledger.one("request", {"id": name})
            if row is None or row["exit"] is None:
                continue
            del self._waiting[name]
            if row["exit"]:
                yield f"`{verb}`, asked while no engine ran, was refused: {row['message']}"
