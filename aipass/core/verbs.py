"""Request verbs: what may be asked for through the spool, and by whom. A feature adds its own with the fields, the authority and the decision together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from aipass.action import Notify, Refuse
from aipass.core.requests import known_as
from aipass.core.router import Handler
from aipass.errors import EXIT_BUG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aipass.action import Action
    from aipass.core.requests import Fields
    from aipass.core.router import View
    from aipass.event import Event


logger = structlog.get_logger("aipass")

#: The handlers that route requests. They are never disabled: what ends that is a request itself.
HANDLERS = ("requests", "rejected requests")


class Authority(Enum):
    """Who may ask: `ANYONE` is people and every agent."""

    ANYONE = "anyone"
    ORCHESTRATOR = "people and the orchestrator"
    PERSON = "people"


class Field(NamedTuple):
    """A field of a request: its type (`str`, `int`, `bool`, `list`), and whether it must be there."""

    type: type
    required: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """Something that was asked for. `id`: what a reply is addressed to; `agent`: who asks, None for a person."""

    id: str
    fields: Mapping[str, Any]
    agent: str | None
    event: Event
    view: View

    def refuse(self, reason: str, exit_code: int = 3) -> list[Action]:
        """The answer to one that is not granted."""
        return [Refuse(self.id, reason, exit_code)]

    def no_agent(self, name: str) -> list[Action]:
        """The answer to one that names an agent that there is none of."""
        there = ", ".join(self.view.agents()) or "none yet"
        return self.refuse(f"there is no agent `{name}`; the agents are: {there}", 2)


@dataclass(frozen=True, slots=True)
class Verb:
    """`handle(request)` is pure. `authority` may be a function of the request's fields. Whoever says nothing leaves it to people."""

    name: str
    handle: Callable[[Request], Iterable[Action]]
    fields: Fields = field(default_factory=dict)
    authority: Authority | Callable[[Mapping[str, Any]], Authority] = Authority.PERSON
    #: What one costs an agent of what it may ask for, besides its length.
    cost_bytes: int = 0

    def asks_for(self, fields: Mapping[str, Any]) -> Authority:
        """Who may ask for this: people, where nobody has said it so that it is understood."""
        found = self.authority if isinstance(self.authority, Authority) else self.authority(fields)
        return found if isinstance(found, Authority) else Authority.PERSON


def handlers(verbs: Mapping[str, Verb]) -> list[Handler]:
    """The handlers that route requests to their verbs."""

    def on_request(event: Event, view: View) -> Iterable[Action]:
        return _answer(verbs, event, view)

    return [
        Handler(HANDLERS[0], ("request.received",), on_request),
        Handler(HANDLERS[1], ("request.rejected",), _on_rejected),
    ]


def _answer(verbs: Mapping[str, Verb], event: Event, view: View) -> Iterable[Action]:
    """Do what was asked for, if whoever asks may ask for it."""
    name = event.detail["verb"]
    request = Request(
        known_as(str(event.ref), event.by), event.detail, view.agent_of_run(event.by), event, view
    )
    verb = verbs.get(name)
    if verb is None:
        return request.refuse(f"`{name}` cannot be asked for", 2)
    if event.by is not None:
        if request.agent is None:
            return request.refuse(f"run {event.by} is not known here")
        needed = verb.asks_for(event.detail)
        if needed is Authority.PERSON:
            return request.refuse(f"`{name}` is for people, and `{request.agent}` is an agent")
        if needed is Authority.ORCHESTRATOR and view.setting("orchestrator") != request.agent:
            named = f"{name} {event.detail.get('do', '')}".rstrip() if verb.authority is not needed else name
            return request.refuse(
                f"`{named}` is for people and the orchestrator, and `{request.agent}` is neither"
            )
    if "refused" in event.detail:
        return request.refuse(event.detail["refused"], 2)
    try:
        actions = list(verb.handle(request))
        for action in actions:
            action.payload()
    except Exception as exc:
        # One verb's bug keeps no other from being asked for, and whoever asks hears of it.
        logger.exception("a request verb failed", verb=name)
        return request.refuse(f"`{name}` failed: {type(exc).__name__}: {exc}", EXIT_BUG)
    return actions


def _on_rejected(event: Event, view: View) -> Iterable[Action]:
    """Tell of a spool file that could not be used."""
    del view
    return [
        Notify(f"a request in .aipass/spool/{event.detail['spool']} was set aside: {event.detail['reason']}")
    ]
