"""`aipass dispatches`: the queue and its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aipass.cli.output import clock, dispatch_json, json_option, print_json, table
from aipass.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Row


@click.command("dispatches")
@json_option
@click.option("--limit", type=click.IntRange(1), help="Only the newest so many.")
@click.option("--agent", help="Only this agent's.")
@click.option(
    "--state",
    type=click.Choice(["queued", "running", "succeeded", "failed", "cancelled", "blocked"]),
    help="Only those in this state.",
)
def command(as_json: bool, limit: int | None, agent: str | None, state: str | None) -> None:
    """List dispatches, oldest first."""
    from aipass.ledger import Ledger

    layout = find_root()
    rows: list[Row] = []
    senders: dict[int, list[str]] = {}
    if layout.ledger.exists():
        ledger = Ledger.read(layout.ledger)
        rows = ledger.all("list_dispatches")
        rows = [
            row
            for row in rows
            if (agent is None or row["agent"] == agent) and (state is None or row["state"] == state)
        ]
        rows = rows[-limit:] if limit else rows
        for row in ledger.each("all_senders"):
            senders.setdefault(row["dispatch"], []).append(row["sender"])
        ledger.close()
    if as_json:
        print_json([dispatch_json(row, senders.get(row["id"], [])) for row in rows])
    elif not rows:
        click.echo("no dispatches yet; `aipass send AGENT TEXT`, or drop a file in inbox/<agent>/")
    else:
        headers = ("ID", "AGENT", "STATE", "TRIES", "CREATED", "WHAT")
        table(
            headers,
            (
                (
                    r["id"],
                    r["agent"],
                    r["state"],
                    r["attempts"],
                    clock(r["created"]),
                    r["reason"] or r["subject"] or r["key"],
                )
                for r in rows
            ),
        )
