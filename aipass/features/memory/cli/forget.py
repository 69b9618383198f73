"""`aipass forget`: remove something that is remembered."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from aipass.event import one_line
from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root

if TYPE_CHECKING:
    from aipass.workspace.layout import Layout

SHOWN_CHARS = 60


@click.command("forget")
@click.argument("memory", metavar="ID", type=click.IntRange(1, 1 << 60))
@click.option("-y", "--yes", is_flag=True, help="Do not ask, on a terminal, whether that is meant.")
def command(memory: int, yes: bool) -> int:
    """Remove what `aipass recall` shows as ID, for good: from state file, memory and log.

    An agent forgets its own; you may forget anything.
    """
    layout = find_root()
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        _confirm(layout, memory)
    row = ask(layout, "forget", memory=memory)
    if row is not None:
        click.echo(row["message"])
    return 0


def _confirm(layout: Layout, memory: int) -> None:
    """Say what it is: memories, messages, dispatches and PRs all have numbers."""
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return
    ledger = Ledger.read(layout.ledger)
    row = ledger.one("memory", {"id": memory})
    ledger.close()
    if row is not None:
        begin = one_line(row["text"])[:SHOWN_CHARS]
        click.confirm(
            f"Forget this {row['source']} of {row['agent']} for good: “{begin}”?", abort=True, err=True
        )
