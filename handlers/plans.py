"""Plans: what an agent delivers starts the next phase."""

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
    """The progress of running plans."""
    del config
    return [
        Handler("plans", KINDS, on_event),
        Handler("plan files", ("file.closed",), on_file, paths=("/plans/*.json",)),
    ]


def on_file(event: Event, view: View) -> Iterable[Action]:
    """A running plan's file was changed: what has not begun may be taken over."""
    match = NUMBERED.fullmatch((event.path or "").rpartition("/")[2])
    return [Steer("change", plan.id) for plan in view.plans() if match and int(match[1]) == int(plan.id)]


def on_event(event: Event, view: View) -> Iterable[Action]:
    """Whatever follows for each running plan."""
    return [action for plan in view.plans() for action in follow(plan, event)]
