"""The verb `aipass reload`: reloads the configuration."""

from __future__ import annotations

import click

from aipass.errors import RefusedError
from aipass.terminal.asking import ask, is_agent
from aipass.workspace.layout import find_root


@click.command("reload")
def command() -> None:
    """Reload aipass.toml, including changes that need the approval of a person.

    Without an engine the file is only checked; the next `aipass up` loads it.
    """
    from aipass.config import reading
    from aipass.features.inbox.feature import make_inboxes
    from aipass.workspace import engine_lock

    # This verb is the approval of a person: an agent could otherwise give itself other programs or more files.
    if is_agent():
        raise RefusedError("`reload` is for people")
    layout = find_root()
    settings = reading.load(layout.config)
    make_inboxes(layout, settings)
    if engine_lock.holder(layout) is None:
        click.echo("aipass.toml is valid; the engine is not running, the next `aipass up` loads the file")
        return
    row = ask(layout, "reload")
    if row is not None:
        click.echo(row["message"])
