"""How verbs find what an ID means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.errors import AipassError
from aipass.ledger import Ledger

if TYPE_CHECKING:
    from aipass.ledger import Row
    from aipass.workspace.layout import Layout


def open_ledger(layout: Layout) -> Ledger:
    """The ledger for reading; raises LedgerError where there is none yet."""
    return Ledger.read(layout.ledger)


def find_dispatch(ledger: Ledger, text: str) -> Row:
    """The dispatch that `12` or `r-…` means; raises AipassError where there is none."""
    number: int | None = None
    if text.startswith("r-"):
        request = ledger.one("request", {"id": text})
        if request is None:
            raise AipassError(
                f"the request {text} is not known; it may still wait in .aipass/spool for an engine"
            )
        if request["dispatch"] is None:
            raise AipassError(f"the request {text} led to no dispatch: {request['message']}")
        number = request["dispatch"]
    elif text.isdecimal() and len(text) <= 18:
        number = int(text)
    row = None if number is None else ledger.one("dispatch", {"id": number})
    if row is None:
        raise AipassError(f"there is no dispatch `{text}`; `aipass dispatches` lists them")
    return row
