"""The verb `aipass deliver`: reports that an agent has delivered its phase of a plan."""

from __future__ import annotations

import click

from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root


@click.command("deliver")
def command() -> None:
    """For agents: mark the phase of this run as delivered now, without the wait after its last write."""
    row = ask(find_root(), "deliver", needs_engine=True)
    if row is not None:
        click.echo(row["message"])
