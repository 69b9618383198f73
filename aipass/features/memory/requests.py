"""The request verbs of memory: `note` and `forget`. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from aipass.action import FinishTodo, Forget, Note
from aipass.core.verbs import Authority, Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action

NOTES = ("todo", "learning", "observation", "doing")
#: Kinds of an imported note, which has the time when it was made.
OLD_NOTES = ("todo", "learning", "observation", "session")


def note(request: Request) -> Iterable[Action]:
    """Add an entry to the agent's own state file, or finish a todo; a person names the agent."""
    fields, agent = request.fields, request.agent
    whose = fields.get("agent") or agent
    if agent is not None and whose != agent:
        return request.refuse(f"`{agent}` notes for itself only")
    if whose is None:
        return request.refuse("say whose note it is: `--agent NAME`", 2)
    if request.view.agent(whose) is None:
        return request.no_agent(whose)
    if fields["do"] == "done":
        return [FinishTodo(whose, fields.get("todo", 0), request.id)]
    if agent is not None and "added" in fields:
        return request.refuse(f"only people can import notes from elsewhere, and `{agent}` is an agent")
    kinds = NOTES if "added" not in fields else OLD_NOTES
    if fields["do"] not in kinds:
        return request.refuse(
            f"`{fields['do']}` is not a kind of note; use one of {', '.join(kinds)}, done", 2
        )
    if not fields.get("text", "").strip():
        return request.refuse("there is nothing to note; give a text", 2)
    try:
        added = None if "added" not in fields else datetime.fromisoformat(fields["added"]).timestamp()
    except (ValueError, OverflowError):
        added = -1.0  # no time at all is refused with the same words as a time in the future
    if added is not None and not 0 <= added <= request.event.time:
        return request.refuse(
            f"`{fields['added']}` is not a time in the past; write it as 2026-01-31T12:00:00Z", 2
        )
    tags = [str(tag) for tag in fields.get("tags", ())]
    return [Note(whose, fields["do"], fields["text"], tags, request.event.by, request.id, added)]


def forget(request: Request) -> Iterable[Action]:
    """Delete one memory permanently."""
    return [Forget(request.fields["memory"], request.agent, request.id)]


VERBS = (
    Verb(
        "note",
        note,
        {
            "do": (str, True),
            "text": (str, False),
            "todo": (int, False),
            "added": (str, False),
            "tags": (list, False),
            "agent": (str, False),
        },
        Authority.ANYONE,
    ),
    # It searches the whole event log, in the engine's thread: one agent must not make it do that without end.
    Verb("forget", forget, {"memory": (int, True)}, Authority.ANYONE, cost_bytes=100_000),
)
