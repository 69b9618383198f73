"""The durable record: SQLite in WAL mode, synchronous FULL, one writer, whatever waits committed together."""

from __future__ import annotations

from aipass.ledger.sqlite import Ledger, Row

__all__ = ["Ledger", "Row"]
