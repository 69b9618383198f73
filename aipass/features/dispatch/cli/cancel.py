"""The verb `aipass cancel`: requests the end of a dispatch."""

from __future__ import annotations

import click

from aipass.errors import AipassError
from aipass.terminal.asking import ask
from aipass.workspace.layout import find_root


@click.command("cancel")
@click.argument("dispatch_id", metavar="ID")
def command(dispatch_id: str) -> None:
    """Cancel the dispatch ID: a queued one immediately, a running one with the signals INT, TERM, KILL."""
    # Checked here as well, because without an engine the user would get the error only after the next start.
    if not dispatch_id.isdecimal() and not dispatch_id.startswith("r-"):
        raise AipassError(f"there is no dispatch `{dispatch_id}`; `aipass dispatches` lists them")
    row = ask(find_root(), "cancel", id=dispatch_id)
    if row is not None:
        click.echo(row["message"])
