"""What may be asked for about memory: `note`, `forget`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from aipass.action import FinishTodo, Forget, Note
from aipass.core.verbs import Authority, Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass.action import Action

NOTES = ("todo", "learning", "observation", "doing")
#: And of elsewhere, with the time when it was made.
OLD_NOTES = ("todo", "learning", "observation", "session")


def note(request: Request) -> Iterable[Action]:
    """An entry for an agent's own state file; a person says for whom."""
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
        return request.refuse(f"what was noted elsewhere is for people to bring, and `{agent}` is an agent")
    kinds = NOTES if "added" not in fields else OLD_NOTES
    if fields["do"] not in kinds:
        return request.refuse(f"`{fields['do']}` is none of {', '.join(kinds)}, done", 2)
    if not fields.get("text", "").strip():
        return request.refuse("there is nothing to note; give a text", 2)
    try:
        added = None if "added" not in fields else datetime.fromisoformat(fields["added"]).timestamp()
    except (ValueError, OverflowError):
        added = -1.0
    if added is not None and not 0 <= added <= request.event.time:
        return request.refuse(
            f"`{fields['added']}` is no time that has been; write it as 2026-01-31T12:00:00Z", 2
        )
    tags = [str(tag) for tag in fields.get("tags", ())]
    return [Note(whose, fields["do"], fields["text"], tags, request.event.by, request.id, added)]


def forget(request: Request) -> Iterable[Action]:
    """Something that is remembered is to be removed for good."""
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
    # To forget, the whole log is looked through.
    Verb("forget", forget, {"memory": (int, True)}, Authority.ANYONE, cost_bytes=100_000),
)
