"""The handler of ended dispatches: delivers an answer file in the outbox to each sender. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Deliver, Handler, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return the handler; every configuration has it."""
    del config
    return [Handler("answers", ("dispatch.finished",), on_finished)]


def on_finished(event: Event, view: View) -> Iterable[Action]:
    """Deliver the answer; failed and cancelled dispatches get one as well, with the reason."""
    del view
    return [Deliver(event.detail["dispatch"])]
