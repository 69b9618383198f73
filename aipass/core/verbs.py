"""Request verbs: the requests that the engine accepts through the spool, each with fields, authority and decision."""

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

#: The handlers that route requests. They are never disabled, because `aipass resume`, which enables a handler, is a request.
HANDLERS = ("requests", "rejected requests")


class Authority(Enum):
    """Who can send a request. The values are used in messages."""

    #: People and every agent.
    ANYONE = "anyone"
    ORCHESTRATOR = "people and the orchestrator"
    PERSON = "people"


class Field(NamedTuple):
    """A field of a request: its type (`str`, `int`, `bool` or `list`), and whether it is required."""

    type: type
    required: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `id`: the address of the reply. `agent`: the agent that sent it; None for a person."""

    id: str
    fields: Mapping[str, Any]
    agent: str | None
    event: Event
    view: View

    def refuse(self, reason: str, exit_code: int = 3) -> list[Action]:
        """The actions that refuse this request."""
        return [Refuse(self.id, reason, exit_code)]

    def no_agent(self, name: str) -> list[Action]:
        """The actions that refuse this request because there is no agent `name`."""
        there = ", ".join(self.view.agents()) or "none yet"
        return self.refuse(f"there is no agent `{name}`; the agents are: {there}", 2)


@dataclass(frozen=True, slots=True)
class Verb:
    """A request verb. `handle(request)` returns actions and is pure.

    `authority`: who can send it, or a function of the fields that returns this. Default: only people.
    """

    name: str
    handle: Callable[[Request], Iterable[Action]]
    fields: Fields = field(default_factory=dict)
    authority: Authority | Callable[[Mapping[str, Any]], Authority] = Authority.PERSON
    #: The cost of a request in the rate limit of a run (`budget.py`), in addition to its length.
    cost_bytes: int = 0

    def asks_for(self, fields: Mapping[str, Any]) -> Authority:
        """Who can send a request with these fields."""
        # A function of a plugin can return anything. What is not understood must not open the verb to agents.
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
    """The actions for a request: those of its verb if the sender has the authority, otherwise a refusal."""
    name = event.detail["verb"]
    request = Request(
        known_as(str(event.ref), event.by), event.detail, view.agent_of_run(event.by), event, view
    )
    verb = verbs.get(name)
    if verb is None:
        return request.refuse(f"there is no request verb `{name}` in this engine", 2)
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
    # The secrets feature found a text too long to search; it has removed the text from the fact and left this reason.
    if "refused" in event.detail:
        return request.refuse(event.detail["refused"], 2)
    try:
        actions = list(verb.handle(request))
        for action in actions:
            action.payload()
    except Exception as exc:
        # Raised, it would count as a failure of the handler for all verbs, and the command would wait without a reply.
        logger.exception("a request verb failed", verb=name)
        return request.refuse(f"`{name}` failed: {type(exc).__name__}: {exc}", EXIT_BUG)
    return actions


def _on_rejected(event: Event, view: View) -> Iterable[Action]:
    """The notice about an invalid spool file."""
    del view
    return [
        Notify(
            f"the request .aipass/spool/{event.detail['spool']} is invalid and was set aside: {event.detail['reason']}"
        )
    ]
