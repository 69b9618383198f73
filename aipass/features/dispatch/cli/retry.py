"""The verb `aipass retry`: requests a repetition of a finished dispatch."""

from __future__ import annotations

import click

from aipass.errors import AipassError
from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root


@click.command("retry")
@click.argument("dispatch_id", metavar="ID")
def command(dispatch_id: str) -> None:
    """Queue the finished dispatch ID again, with the same senders."""
    # Checked here as well, because without an engine the user would get the error only after the next start.
    if not dispatch_id.isdecimal() and not dispatch_id.startswith("r-"):
        raise AipassError(f"there is no dispatch `{dispatch_id}`; `aipass dispatches` lists them")
    row = ask(find_root(), "retry", id=dispatch_id)
    if row is not None:
        click.echo(row["message"])
