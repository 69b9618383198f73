"""Requests that were written while no engine ran. Their commands have ended, so a refusal becomes a notice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aipass.ledger import Ledger

#: The id of a request contains its time, in microseconds since the epoch (`requests.new_id`).
_ID = re.compile(r"r-([0-9a-f]{14})-[0-9a-f]+")
#: Requests that are followed. Refusals of further ones are only in the events.
MOST = 100


class UnattendedRequests:
    """Follows such requests until they are answered. Only for the engine's thread."""

    def __init__(self, started: float) -> None:
        """`started`: the start of the engine, in seconds since the epoch. The command of a later request waits for the reply."""
        self._started = started
        self._waiting: dict[str, str] = {}

    def note(self, name: str, verb: str) -> None:
        """Follow a request of a person, if it was made before the engine started."""
        asked = _ID.fullmatch(name)
        if asked is not None and int(asked[1], 16) < self._started * 1e6 and len(self._waiting) < MOST:
            self._waiting[name] = verb

    def refused(self, ledger: Ledger) -> Iterator[str]:
        """A text for each of these requests that was refused since the last call."""
        for name, verb in list(self._waiting.items()):
            row = ledger.one("request", {"id": name})
            if row is None or row["exit"] is None:
                continue
            del self._waiting[name]
            if row["exit"]:
                yield f"`{verb}`, requested while no engine ran, was refused: {row['message']}"
