"""The lookup of a dispatch by the ID that a user gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.errors import AipassError
from aipass.ledger import Ledger

if TYPE_CHECKING:
    from aipass.ledger import Row
    from aipass.workspace.layout import Layout


def open_ledger(layout: Layout) -> Ledger:
    """Open the ledger (SQLite event log) for reading only. Raises LedgerError if there is none yet."""
    return Ledger.read(layout.ledger)


def snapshot(layout: Layout) -> Ledger:
    """The same, with all that is read of one moment: for a verb that combines several statements."""
    return Ledger.snapshot(layout.ledger)


def find_dispatch(ledger: Ledger, text: str) -> Row:
    """Return the dispatch of an id (`12`) or of the request that made it (`r-…`). Raises AipassError if there is none."""
    number: int | None = None
    if text.startswith("r-"):
        request = ledger.one("request", {"id": text})
        if request is None:
            raise AipassError(
                f"there is no request {text} in the ledger; it may still be queued in .aipass/spool until an engine starts"
            )
        if request["dispatch"] is None:
            raise AipassError(f"the request {text} made no dispatch: {request['message']}")
        number = request["dispatch"]
    # SQLite raises OverflowError for integers of more than 64 bits.
    elif text.isdecimal() and len(text) <= 18:
        number = int(text)
    row = None if number is None else ledger.one("dispatch", {"id": number})
    if row is None:
        raise AipassError(f"there is no dispatch `{text}`; `aipass dispatches` lists them")
    return row
