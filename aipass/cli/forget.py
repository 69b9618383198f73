"""`aipass forget`: remove something that is remembered."""

from __future__ import annotations

import click

from aipass.cli.asking import ask
from aipass.layout import find_root


@click.command("forget")
@click.argument("memory", metavar="ID", type=click.IntRange(1, 1 << 60))
def command(memory: int) -> int:
    """Remove what `aipass recall` shows as ID, for good: from state file, memory and log.

    An agent forgets its own; you may forget anything.
    """
    row = ask(find_root(), "forget", memory=memory)
    if row is not None:
        click.echo(row["message"])
    return 0
