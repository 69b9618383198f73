"""The ledger (SQLite event log): the durable record in one file, with one writer and any number of readers."""

from __future__ import annotations

from aipass.ledger.sqlite import Ledger, Row

__all__ = ["Ledger", "Row"]
