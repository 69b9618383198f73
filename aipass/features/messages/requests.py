"""The request verbs of messages: `message`, `ask`, `answer` and `read`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aipass.action import Answer, Ask, MarkRead, Message
from aipass.core.verbs import Authority, Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action


def message(request: Request) -> Iterable[Action]:
    """Send a message to an agent, to all agents, or to the person."""
    fields, agent = request.fields, request.agent
    to, text = fields["to"], fields["text"]
    if to not in {"all", "human"} and request.view.agent(to) is None:
        return request.no_agent(to)
    if to == agent:
        return request.refuse(
            "you cannot send a message to yourself; `aipass note` keeps a text for later", 2
        )
    if not text.strip():
        return request.refuse("there is nothing to say; give a text", 2)
    files = [str(path) for path in fields.get("files", ())]
    about = (fields.get("subject"), files, fields.get("reply_to"), request.event.by)
    return [Message(to, text, agent or "human", *about, request.id)]


def ask(request: Request) -> Iterable[Action]:
    """Ask an agent or the person a question that must be answered."""
    fields, asker = request.fields, request.agent or "human"
    to, text = fields["to"], fields["text"]
    if to != "human" and request.view.agent(to) is None:
        return request.no_agent(to)
    if to == asker:
        return request.refuse("you cannot ask yourself; ask `human`, or another agent", 2)
    if not text.strip():
        return request.refuse("there is nothing to ask; give a text", 2)
    options = [str(option) for option in fields.get("options", ())]
    return [Ask(to, text, asker, options, fields.get("waits"), request.event.by, request.id)]


def answer(request: Request) -> Iterable[Action]:
    """Answer a question."""
    # The field comes from an agent's file: any other value than true must not skip the check of the options.
    fields, by = request.fields, request.event.by
    is_other = fields.get("other") is True
    return [
        Answer(fields["question"], fields["text"], request.agent or "human", by, request.id, other=is_other)
    ]


def read(request: Request) -> Iterable[Action]:
    """Mark messages as read by the asker; ids of messages for others are ignored."""
    ids = [one for one in request.fields["ids"] if isinstance(one, int)]
    return [MarkRead(ids, request.agent or "human", request.event.by, request.id)]


VERBS = (
    Verb(
        "message",
        message,
        {
            "to": (str, True),
            "text": (str, True),
            "subject": (str, False),
            "files": (list, False),
            "reply_to": (int, False),
        },
        Authority.ANYONE,
    ),
    Verb(
        "ask",
        ask,
        {"to": (str, True), "text": (str, True), "options": (list, False), "waits": (int, False)},
        Authority.ANYONE,
    ),
    Verb(
        "answer",
        answer,
        {"question": (int, True), "text": (str, True), "other": (bool, False)},
        Authority.ANYONE,
    ),
    Verb("read", read, {"ids": (list, True)}, Authority.ANYONE),
)
