"""The verb `aipass forget`: removes an entry from the shared memory."""

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
@click.option("-y", "--yes", is_flag=True, help="Skip the confirmation on a terminal.")
def command(memory: int, yes: bool) -> int:
    """Delete the memory that `aipass recall` lists as ID from state file, memory and log. This cannot be undone.

    An agent can delete only its own memories; you can delete all.
    """
    layout = find_root()
    # Only on a terminal: a script or an agent could not answer and would wait without end.
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        _confirm(layout, memory)
    row = ask(layout, "forget", memory=memory)
    if row is not None:
        click.echo(row["message"])
    return 0


def _confirm(layout: Layout, memory: int) -> None:
    """Show the entry and ask. Ends the verb (exit status 130) if the answer is no."""
    # Memories, messages, dispatches and PRs all have numbers, and a mix-up could not be undone.
    from aipass.ledger import Ledger

    if not layout.ledger.exists():
        return
    ledger = Ledger.read(layout.ledger)
    row = ledger.one("memory", {"id": memory})
    ledger.close()
    if row is not None:
        begin = one_line(row["text"])[:SHOWN_CHARS]
        click.confirm(
            f"Delete this {row['source']} of {row['agent']}: “{begin}”? This cannot be undone.",
            abort=True,
            err=True,
        )
