"""The handler of plans: starts the next phases when one is delivered, checked or merged. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass import Handler, hookimpl
from aipass.action import Steer
from aipass.features.plans.model import NUMBERED
from aipass.features.plans.progress import follow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config

#: Every kind that can change which phase is next. `engine.started` covers what happened while no engine ran.
KINDS = (
    "plan.started",
    "plan.changed",
    "phase.ready",
    "phase.written",
    "phase.delivered",
    "phase.done",
    "phase.failed",
    "check.finished",
    "pr.opened",
    "pr.updated",
    "pr.failed",
    "run.started",
    "run.finished",
    "dispatch.finished",
    "file.closed",
    "clock.tick",
    "engine.started",
)


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return the handlers for the progress of plans, and for changes of plan files."""
    del config
    return [
        Handler("plans", KINDS, on_event),
        Handler("plan files", ("file.closed",), on_file, paths=("/plans/*.json",)),
    ]


def on_file(event: Event, view: View) -> Iterable[Action]:
    """Apply the changed file of a running plan; phases that have begun stay as they are."""
    match = NUMBERED.fullmatch((event.path or "").rpartition("/")[2])
    return [Steer("change", plan.id) for plan in view.plans() if match and int(match[1]) == int(plan.id)]


def on_event(event: Event, view: View) -> Iterable[Action]:
    """Return the next actions of each running plan."""
    return [action for plan in view.plans() for action in follow(plan, event)]
