"""What may be asked for about dispatches: `send`, `cancel`, `retry`, `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Cancel, Dispatch, Resume, Retry
from aipass.core.verbs import Authority, Request, Verb
from aipass.features.dispatch.keys import is_own_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action


def send(request: Request) -> Iterable[Action]:
    """Work for an agent."""
    fields, view, agent = request.fields, request.view, request.agent
    target, text, reply_to = fields["agent"], fields["text"], fields.get("reply_to")
    if view.agent(target) is None:
        return request.no_agent(target)
    if not text.strip():
        return request.refuse("there is nothing to say; give a text", 2)
    key = str(fields.get("key") or "")
    if is_own_key(key):
        return request.refuse(f"`{key[:60]}` is a key of aipass's own; give the work another one", 2)
    before = None if reply_to is None else view.resolve(reply_to)
    if reply_to is not None and before is None:
        return request.refuse(f"there is no dispatch `{reply_to}` to reply to", 1)
    priority = fields.get("priority", 0)
    return [
        Dispatch(
            agent=target,
            text=text,
            subject=fields.get("subject"),
            key=fields.get("key"),
            # An agent's work comes before no person's.
            priority=priority if agent is None else min(0, priority),
            sender=agent or fields.get("sender") or "human",
            reply_to=before,
            request=request.id,
            wake=view.dispatch_of_run(request.event.by) if fields.get("wake") else None,
            waits=fields.get("waits"),
        )
    ]


def cancel(request: Request) -> Iterable[Action]:
    """End a dispatch."""
    dispatch = request.view.resolve(request.fields["id"])
    if dispatch is None:
        return _no_dispatch(request)
    who = request.view.agent_of_run(request.event.by) or "a person"
    return [Cancel(dispatch, f"cancelled by {who}", request.id)]


def retry(request: Request) -> Iterable[Action]:
    """Queue a dispatch again."""
    dispatch = request.view.resolve(request.fields["id"])
    return _no_dispatch(request) if dispatch is None else [Retry(dispatch, request.id)]


def resume(request: Request) -> Iterable[Action]:
    """End a pause."""
    return [Resume(request.fields["name"], request.id)]


def _no_dispatch(request: Request) -> Iterable[Action]:
    return request.refuse(f"there is no dispatch `{request.fields['id']}`; `aipass dispatches` lists them", 1)


VERBS = (
    Verb(
        "send",
        send,
        {
            "agent": (str, True),
            "text": (str, True),
            "subject": (str, False),
            "key": (str, False),
            "priority": (int, False),
            "reply_to": (str, False),
            "sender": (str, False),
            "wake": (bool, False),
            "waits": (int, False),
        },
        Authority.ANYONE,
    ),
    Verb("cancel", cancel, {"id": (str, True)}, Authority.ORCHESTRATOR),
    Verb("retry", retry, {"id": (str, True)}, Authority.ORCHESTRATOR),
    Verb("resume", resume, {"name": (str, True)}, Authority.ORCHESTRATOR),
)
