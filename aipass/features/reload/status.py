"""The configuration in `aipass status`: changes that wait, and a file that cannot be used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.config.quick import raw
from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Lines of attention."""
    attention: list[str] = []
    if ledger is not None:
        if waiting := json.loads(ledger.meta("config.waiting") or "[]"):
            attention.append(f"aipass.toml changed; waiting for `aipass reload`: {', '.join(waiting)}")
        attention += json.loads(ledger.meta("config.shared") or "[]")
        if error := ledger.meta("config.error"):
            return {"attention": [*attention, f"aipass.toml is not valid, the old one is in force: {error}"]}
    try:
        raw(layout)
    except ConfigError as exc:
        attention.append(f"aipass.toml cannot be used: {exc}")
    return {"attention": attention}


def show(found: dict[str, Any]) -> list[str]:
    """Nothing besides the lines of attention."""
    del found
    return []
