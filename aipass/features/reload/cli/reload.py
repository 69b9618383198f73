"""`aipass reload`: take aipass.toml as it is."""

from __future__ import annotations

import click

from aipass.errors import RefusedError
from aipass.terminal.asking import ask, is_agent
from aipass.workspace.layout import find_root


@click.command("reload")
def command() -> None:
    """Take over all of aipass.toml, what waits for a person's word included.

    Without an engine the file is only checked; the next `aipass up` takes it as it is.
    """
    from aipass.config import reading
    from aipass.features.inbox.feature import make_inboxes
    from aipass.workspace import engine_lock

    if is_agent():
        raise RefusedError("`reload` is for people")
    layout = find_root()
    settings = reading.load(layout.config)
    make_inboxes(layout, settings)
    if engine_lock.holder(layout) is None:
        click.echo("aipass.toml is valid; no engine runs here, the next `aipass up` takes it as it is")
        return
    row = ask(layout, "reload")
    if row is not None:
        click.echo(row["message"])
