"""A dispatch that reached its end is answered: a file in the outbox for everybody who asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Deliver, Handler, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Answers, for every configuration."""
    del config
    return [Handler("answers", ("dispatch.finished",), on_finished)]


def on_finished(event: Event, view: View) -> Iterable[Action]:
    """Deliver, whatever the end was."""
    del view
    return [Deliver(event.detail["dispatch"])]
