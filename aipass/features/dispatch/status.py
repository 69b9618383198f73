"""Dispatches (jobs) in `aipass status`: agents with their runs, numbers by state, and pauses."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from aipass.config.quick import agents, in_force, raw
from aipass.errors import ConfigError
from aipass.event import iso
from aipass.terminal.output import clock

if TYPE_CHECKING:
    from aipass.ledger import Ledger
    from aipass.workspace.layout import Layout

STATES = ("queued", "running", "succeeded", "failed", "cancelled", "blocked")


def gather(layout: Layout, ledger: Ledger | None) -> dict[str, Any]:
    """`agents`, `counts` and `pauses`, as JSON values; works without a ledger and with an invalid configuration."""
    # The agents are those of the engine's configuration, which differs from the file while a change waits for `aipass reload`.
    known = in_force(layout)
    try:
        raw(layout)
        configured = known or agents(layout)
    except ConfigError:
        configured = known or {}
    per_agent = {(row[0], row[1]): row[2] for row in ledger.all("count_agents")} if ledger else {}
    counts = {row[0]: row[1] for row in ledger.all("count_states")} if ledger else {}
    return {
        "agents": [
            {
                "name": name,
                "driver": settings.get("driver"),
                "running": per_agent.get((name, "running"), 0),
                "queued": per_agent.get((name, "queued"), 0),
            }
            for name, settings in configured.items()
        ],
        "counts": {state: counts.get(state, 0) for state in STATES},
        "pauses": [
            {"kind": row["kind"], "name": row["name"], "reason": row["reason"], "since": iso(row["since"])}
            | {"until": iso(row["until"])}
            for row in (ledger.all("pauses") if ledger else ())
        ],
    }


def show(found: dict[str, Any]) -> list[str]:
    """The line with the numbers, then one line for each pause. `aipass status` prints the agents as a table at its end."""
    counts = (
        f"{number} {state}"
        for state, number in found["counts"].items()
        if number or state in {"queued", "running"}
    )
    return ["counts   " + ", ".join(counts), *map(_paused, found["pauses"])]


def _paused(pause: dict[str, Any]) -> str:
    until = f" until {clock(datetime.fromisoformat(pause['until']).timestamp())}" if pause["until"] else ""
    text = f"paused   {pause['kind']} {pause['name']}{until}: {pause['reason']}"
    return click.style(f"{text}; `aipass resume {pause['name']}` ends the pause", fg="yellow")
