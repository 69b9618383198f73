"""The part of the sandbox in `aipass status`: the layers that are active on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aipass.config.quick import raw
from aipass.errors import ConfigError
from aipass.supervisor.fence import probe

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """Return `layers`: in words, the fence (per-file sandbox, seccomp) and the wall (folder sandbox, Landlock)."""
    del ledger
    try:
        settings = raw(layout).get("sandbox", {})
    except ConfigError:
        settings = {}  # the part of `reload` reports the fault
    # Not validated here: `sandbox = 1` is valid TOML as well.
    return {"layers": probe.described(settings if isinstance(settings, dict) else {})}


def show(found: dict[str, Any]) -> list[str]:
    """Return one line, in yellow if neither layer restricts agents."""
    words = found["layers"]
    # "off" is the user's choice and "none" the machine's lack; the consequence for files is the same.
    bare = all(text.startswith(("none", "off")) for text in words.values())
    line = f"layers   fence {words['fence']}, wall {words['wall']}"
    return [
        click.style(
            line + (": agents can write wherever you can" if bare else ""), fg="yellow" if bare else None
        )
    ]
