"""`aipass dispatches`: the queue and its history."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from aipass.cli.waiting import WaitReasons
from aipass.event import one_line
from aipass.terminal.asking import check_agent
from aipass.terminal.output import clock, dispatch_json, json_option, print_json, table
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.ledger import Row

TASK_CHARS = 40  # of the task, where a reason stands beside it


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
    starts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
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
            starts.setdefault(row["dispatch"], row["start"])
        if rows and not as_json:
            waiting = WaitReasons(layout, ledger)
            reasons = {row["id"]: waiting.of(row) for row in rows}
        ledger.close()
    if as_json:
        print_json([dispatch_json(row, senders.get(row["id"], [])) for row in rows])
    elif not rows and (agent is not None or state is not None):
        if agent is not None:
            check_agent(layout, agent)
        click.echo("no such dispatches; `aipass dispatches` lists all")
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
                    _what(r, starts.get(r["id"], ""), reasons[r["id"]]),
                )
                for r in rows
            ),
        )


def _what(row: Row, start: str, waits: str | None) -> str:
    """What was asked for, in one line, and why it is as it is."""
    task = one_line(row["subject"] or start or row["key"])
    reason = waits or row["reason"]
    if not reason:
        return task
    return f"{textwrap.shorten(task, TASK_CHARS, placeholder='…')}: {reason}" if task else str(reason)
