"""The part of the configuration in `aipass status`: changes that wait for approval, and a file that is not valid."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aipass.config.quick import raw
from aipass.errors import ConfigError

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return lines of `attention`; the file itself is read only if the engine has recorded no error of it."""
    attention: list[str] = []
    if ledger is not None:
        if waiting := json.loads(ledger.meta("config.waiting") or "[]"):
            attention.append(f"aipass.toml changed; run `aipass reload` to apply: {', '.join(waiting)}")
        attention += json.loads(ledger.meta("config.shared") or "[]")
        # The engine's error includes what plugins check; reading the file here would find TOML errors only.
        if error := ledger.meta("config.error"):
            return {
                "attention": [
                    *attention,
                    f"aipass.toml is not valid; the earlier version stays in force: {error}",
                ]
            }
    # Without an engine no reload has checked the file.
    try:
        raw(layout)
    except ConfigError as exc:
        attention.append(f"aipass.toml is not valid: {exc}")
    return {"attention": attention}


def show(found: dict[str, Any]) -> list[str]:
    """Return no lines: this part has only lines of `attention`."""
    del found
    return []
