"""aipass.toml is watched: a change that is valid is taken over at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Handler, Reload, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """The configuration's own watch."""
    del config
    return [Handler("watch", ("file.closed", "file.deleted"), on_config, paths=("/aipass.toml",))]


def on_config(event: Event, view: View) -> Iterable[Action]:
    """Read it again; what could start other programs waits for a person's `aipass reload`."""
    del event, view
    return [Reload(trusted=False)]
