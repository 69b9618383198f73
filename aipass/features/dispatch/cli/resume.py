"""The verb `aipass resume`: ends the pause of an agent, a rule, a driver or a handler."""

from __future__ import annotations

import click

from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root


@click.command("resume")
@click.argument("name", metavar="AGENT|RULE|DRIVER|HANDLER")
def command(name: str) -> None:
    """End the pause of an agent, a rule or a driver, or enable a handler again. `aipass status` lists the pauses."""
    row = ask(find_root(), "resume", name=name)
    if row is not None:
        click.echo(row["message"])
