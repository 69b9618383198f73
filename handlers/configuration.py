"""The handler of aipass.toml: reloads the configuration when the file changes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Handler, Reload, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return the handler; every configuration has it."""
    del config
    return [Handler("watch", ("file.closed", "file.deleted"), on_config, paths=("/aipass.toml",))]


def on_config(event: Event, view: View) -> Iterable[Action]:
    """Reload the file. Changes that could start other programs wait for a person's `aipass reload`."""
    del event, view
    # An event does not say who wrote the file: without a fence it can be an agent.
    return [Reload(trusted=False)]
