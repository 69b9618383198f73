"""The verb `aipass dispatches`: lists the queue and its history."""

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

#: Length of the task in a row that also has a reason: the reason is more important and must fit on the line.
TASK_CHARS = 40


@click.command("dispatches")
@json_option
@click.option("--limit", type=click.IntRange(1), help="Show only this number of the newest dispatches.")
@click.option("--agent", help="Show only dispatches of this agent.")
@click.option(
    "--state",
    type=click.Choice(["queued", "running", "succeeded", "failed", "cancelled", "blocked"]),
    help="Show only dispatches in this state.",
)
def command(as_json: bool, limit: int | None, agent: str | None, state: str | None) -> None:
    """List dispatches (jobs), oldest first."""
    from aipass.ledger import Ledger

    layout = find_root()
    rows: list[Row] = []
    senders: dict[int, list[str]] = {}
    starts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    if layout.ledger.exists():
        ledger = Ledger.snapshot(layout.ledger)
        rows = ledger.all("list_dispatches")
        rows = [
            row
            for row in rows
            if (agent is None or row["agent"] == agent) and (state is None or row["state"] == state)
        ]
        rows = rows[-limit:] if limit else rows
        # One query for all rows instead of one for each: a ledger may have 100,000 dispatches.
        for row in ledger.each("all_senders"):
            senders.setdefault(row["dispatch"], []).append(row["sender"])
            starts.setdefault(row["dispatch"], row["start"])
        # Scripts get the recorded state only. The reasons need the lock and the configuration as well.
        if rows and not as_json:
            waiting = WaitReasons(layout, ledger)
            reasons = {row["id"]: waiting.of(row) for row in rows}
        ledger.close()
    if as_json:
        print_json([dispatch_json(row, senders.get(row["id"], [])) for row in rows])
    elif not rows and (agent is not None or state is not None):
        # Only for an empty list: dispatches of an agent that was removed from aipass.toml can still be listed.
        if agent is not None:
            check_agent(layout, agent)
        click.echo("no dispatches match; `aipass dispatches` lists all")
    elif not rows:
        click.echo("no dispatches yet; run `aipass send AGENT TEXT`, or drop a file in inbox/<agent>/")
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
    """The task in one line, with the reason of the state if there is one."""
    task = one_line(row["subject"] or start or row["key"])
    reason = waits or row["reason"]
    if not reason:
        return task
    return f"{textwrap.shorten(task, TASK_CHARS, placeholder='…')}: {reason}" if task else str(reason)
