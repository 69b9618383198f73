"""The request verbs of dispatches (jobs): `send`, `cancel`, `retry`, `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Cancel, Dispatch, Resume, Retry
from aipass.core.verbs import Authority, Request, Verb
from aipass.features.dispatch.keys import is_own_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action


def send(request: Request) -> Iterable[Action]:
    """Give work to an agent: returns one `Dispatch`, or a refusal.

    Refused are an unknown agent, an empty text, a reserved key, and a reply to an unknown dispatch.
    """
    fields, view, agent = request.fields, request.view, request.agent
    target, text, reply_to = fields["agent"], fields["text"], fields.get("reply_to")
    if view.agent(target) is None:
        return request.no_agent(target)
    if not text.strip():
        return request.refuse("the text is empty; give a text", 2)
    key = str(fields.get("key") or "")
    # With the key of a phase or a question a sender could join that work and add text to its prompt.
    if is_own_key(key):
        return request.refuse(f"`{key[:60]}` is a key of aipass's own; choose another key", 2)
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
            # Agents cannot put their work before that of people.
            priority=priority if agent is None else min(0, priority),
            # For an agent's request the sender is always the agent: it must not speak in another name.
            sender=agent or fields.get("sender") or "human",
            reply_to=before,
            request=request.id,
            wake=view.dispatch_of_run(request.event.by) if fields.get("wake") else None,
            waits=fields.get("waits"),
        )
    ]


def cancel(request: Request) -> Iterable[Action]:
    """Cancel a dispatch, with the requester in the reason."""
    dispatch = request.view.resolve(request.fields["id"])
    if dispatch is None:
        return _no_dispatch(request)
    who = request.view.agent_of_run(request.event.by) or "a person"
    return [Cancel(dispatch, f"cancelled by {who}", request.id)]


def retry(request: Request) -> Iterable[Action]:
    """Queue a finished, blocked or waiting dispatch again."""
    dispatch = request.view.resolve(request.fields["id"])
    return _no_dispatch(request) if dispatch is None else [Retry(dispatch, request.id)]


def resume(request: Request) -> Iterable[Action]:
    """End all pauses of a name: agent, driver, rule or handler."""
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
