"""`aipass deliver`: an agent says that its phase is delivered."""

from __future__ import annotations

import click

from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root


@click.command("deliver")
def command() -> None:
    """Say that the phase of your run is delivered, without waiting for its last write to settle."""
    row = ask(find_root(), "deliver", needs_engine=True)
    if row is not None:
        click.echo(row["message"])
