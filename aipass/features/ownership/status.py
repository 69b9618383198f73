"""The sandbox in `aipass status`: which of its layers hold on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aipass.errors import ConfigError
from aipass.features.ownership import layers

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """`layers`: fence and wall, each in words."""
    from aipass.config import reading

    del ledger
    try:
        config = reading.load(layout.config)
    except ConfigError:
        config = None  # what is wrong with it is said elsewhere
    return {"layers": layers.described(config)}


def show(found: dict[str, Any]) -> list[str]:
    """One line, in yellow where nothing holds an agent."""
    words = found["layers"]
    bare = all(text.startswith(("none", "off")) for text in words.values())
    line = f"layers   fence {words['fence']}, wall {words['wall']}"
    return [
        click.style(
            line + (": agents can write wherever you can" if bare else ""), fg="yellow" if bare else None
        )
    ]
