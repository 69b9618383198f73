"""Plans: what an agent delivers starts the next phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Handler, hookimpl
from aipass.plan.progress import follow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config import Config

KINDS = (
    "plan.started",
    "phase.ready",
    "phase.written",
    "phase.delivered",
    "phase.done",
    "phase.failed",
    "check.finished",
    "run.started",
    "run.finished",
    "dispatch.finished",
    "file.closed",
    "clock.tick",
    "engine.started",
)


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """The progress of running plans."""
    del config
    return [Handler("plans", KINDS, on_event)]


def on_event(event: Event, view: View) -> Iterable[Action]:
    """Whatever follows for each running plan."""
    return [action for plan in view.plans() for action in follow(plan, event)]
