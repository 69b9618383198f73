"""What people and agents ask for through the spool, and who may ask for what."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from aipass import (
    Cancel,
    ClosePr,
    Dispatch,
    Handler,
    MergePr,
    Notify,
    OpenPr,
    Refuse,
    Reload,
    Resume,
    Retry,
    hookimpl,
)
from aipass.action import Answer, Ask, FinishTodo, Forget, MarkRead, Message, Note, Reply, Steer
from aipass.plan import progress
from aipass.request import AGENT_VERBS, MAX_SAID, ORCHESTRATOR_PR, ORCHESTRATOR_VERBS, is_own_key, known_as

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Requests, for every configuration."""
    del config
    return [
        Handler("requests", ("request.received",), on_request),
        Handler("rejected requests", ("request.rejected",), on_rejected),
    ]


def on_request(event: Event, view: View) -> Iterable[Action]:
    """Do what was asked for, if whoever asks may ask for it."""
    verb, request = event.detail["verb"], known_as(str(event.ref), event.by)
    agent = view.agent_of_run(event.by)
    if event.by is not None:
        if agent is None:
            return [Refuse(request, f"run {event.by} is not known here", 3)]
        if verb not in AGENT_VERBS:
            return [Refuse(request, f"`{verb}` is for people, and `{agent}` is an agent", 3)]
        is_theirs = verb in ORCHESTRATOR_VERBS or (verb == "pr" and event.detail["do"] in ORCHESTRATOR_PR)
        if is_theirs and view.setting("orchestrator") != agent:
            named = f"pr {event.detail['do']}" if verb == "pr" else verb
            return [
                Refuse(request, f"`{named}` is for people and the orchestrator, and `{agent}` is neither", 3)
            ]
    if "too_long" in event.detail:
        text = f"it has {event.detail['too_long']} characters, and {MAX_SAID} may be said at once; put it into a file, and say which (--attach)"
        return [Refuse(request, text, 2)]
    match verb:
        case "send":
            return [_send(event, view, request, agent)]
        case "cancel" | "retry":
            return [_change(event, view, request, verb)]
        case "plan":
            if event.detail["do"] not in STEERING:
                return [Refuse(request, f"`{event.detail['do']}` is none of {', '.join(STEERING)}", 2)]
            return [
                Steer(
                    event.detail["do"], event.detail["id"], request, again=event.detail.get("again") is True
                )
            ]
        case "deliver":
            return _deliver(event, view, request)
        case "pr":
            return [_pull(event, view, request, agent)]
        case "commit":
            return [_open(event, view, request, agent, draft=True)]
        case "note":
            return [_note(event, view, request, agent)]
        case "message":
            return [_message(event, view, request, agent)]
        case "ask":
            return [_ask(event, view, request, agent)]
        case "answer":
            return [
                Answer(
                    event.detail["question"],
                    event.detail["text"],
                    agent or "human",
                    event.by,
                    request,
                    other=event.detail.get("other") is True,
                )
            ]
        case "forget":
            return [Forget(event.detail["memory"], agent, request)]
        case "read":
            return [_read(event, request, agent)]
        case "resume":
            return [Resume(event.detail["name"], request)]
        case _:
            return [Reload(trusted=True, request=request)]


def on_rejected(event: Event, view: View) -> Iterable[Action]:
    """Tell of a spool file that could not be used."""
    del view
    return [
        Notify(f"a request in .aipass/spool/{event.detail['spool']} was set aside: {event.detail['reason']}")
    ]


MAX_TITLE = 200
METHODS = ("merge", "squash", "ff")
NOTES = ("todo", "learning", "observation", "doing")
#: And of elsewhere, with the time when it was made.
OLD_NOTES = ("todo", "learning", "observation", "session")
STEERING = ("start", "pause", "resume", "stop")


def _deliver(event: Event, view: View, request: str) -> Iterable[Action]:
    """An agent says that its phase is delivered."""
    for plan in view.plans():
        for phase in plan.phases:
            if event.by is not None and phase.run == event.by and phase.state in {"running", "delivered"}:
                if missing := phase.missing():
                    return [
                        Refuse(request, f"phase {phase.id} has not delivered {', '.join(missing)} yet", 3)
                    ]
                return [
                    *progress.deliver(plan, phase),
                    Reply(request, f"phase {phase.id} of plan {plan.id} is delivered"),
                ]
    return [Refuse(request, "you work on no phase of a plan", 3)]


def _send(event: Event, view: View, request: str, agent: str | None) -> Action:
    target, text = event.detail["agent"], event.detail["text"]
    if view.agent(target) is None:
        return _nobody(view, request, target)
    if not text.strip():
        return Refuse(request, "there is nothing to say; give a text", 2)
    reply_to = event.detail.get("reply_to")
    key = str(event.detail.get("key") or "")
    if is_own_key(key):
        return Refuse(request, f"`{key[:60]}` is a key of aipass's own; give the work another one", 2)
    before = None if reply_to is None else view.resolve(reply_to)
    if reply_to is not None and before is None:
        return Refuse(request, f"there is no dispatch `{reply_to}` to reply to", 1)
    return Dispatch(
        agent=target,
        text=text,
        subject=event.detail.get("subject"),
        key=event.detail.get("key"),
        # An agent's work comes before no person's.
        priority=event.detail.get("priority", 0)
        if agent is None
        else min(0, event.detail.get("priority", 0)),
        sender=agent or event.detail.get("sender") or "human",
        reply_to=before,
        request=request,
        wake=view.dispatch_of_run(event.by) if event.detail.get("wake") else None,
        waits=event.detail.get("waits"),
    )


def _pull(event: Event, view: View, request: str, agent: str | None) -> Action:
    """A PR is to be opened, merged or closed."""
    do = event.detail["do"]
    if do == "open":
        return _open(event, view, request, agent)
    if do not in ORCHESTRATOR_PR:
        return Refuse(request, f"`{do}` is none of open, merge, close", 2)
    prs = [int(one) for one in event.detail.get("ids", ()) if str(one).isdecimal() and len(str(one)) < 16]
    if not prs or len(prs) != len(event.detail["ids"]):
        return Refuse(request, "name the PRs by their numbers; `aipass pr list` shows them", 2)
    if do == "close":
        return ClosePr(prs, event.detail.get("reason") or "", request)
    method = event.detail.get("method") or ""
    if method not in {"", *METHODS}:
        return Refuse(request, f"`{method}` is none of {', '.join(METHODS)}", 2)
    return MergePr(prs, method, request)


def _open(event: Event, view: View, request: str, agent: str | None, *, draft: bool = False) -> Action:
    """A PR of what an agent wrote: its own where an agent asks, the one that a person names."""
    title = (event.detail.get("title") or "").strip()
    if not title:
        return Refuse(request, 'a PR needs a title: `-m "Add login"`', 2)
    if len(title) > MAX_TITLE:
        return Refuse(
            request, f"a title has at most {MAX_TITLE} characters; give the rest with a second `-m`", 2
        )
    named = event.detail.get("dispatch")
    dispatch = None if named is None else view.resolve(named)
    if named is not None and dispatch is None:
        return Refuse(request, f"there is no dispatch `{named}`; `aipass dispatches` lists them", 1)
    worker = None if dispatch is None else view.agent_of_dispatch(dispatch)
    whose = event.detail.get("agent") or worker
    if agent is not None and whose not in {None, agent}:
        return Refuse(request, f"`{agent}` hands in its own work only", 3)
    if agent is not None and event.detail.get("include"):
        return Refuse(
            request,
            f"`--include` takes what others have changed since, and `{agent}` hands in its own work only",
            3,
        )
    whose = agent or whose
    if whose is None:
        return Refuse(request, "say whose work it is: `--agent NAME`, or `--dispatch ID`", 2)
    if worker not in {None, whose}:
        return Refuse(request, f"dispatch {dispatch} is {worker}'s work, not {whose}'s", 3 if agent else 2)
    if view.agent(whose) is None:
        return _nobody(view, request, whose)
    return OpenPr(
        whose,
        title,
        event.detail.get("body") or "",
        dispatch,
        event.by,
        paths=[str(path) for path in event.detail.get("paths", ())],
        include=event.detail.get("include", False),
        draft=draft,
        request=request,
    )


def _note(event: Event, view: View, request: str, agent: str | None) -> Action:
    """An entry for an agent's own state file; a person says for whom."""
    detail = event.detail
    whose = detail.get("agent") or agent
    if agent is not None and whose != agent:
        return Refuse(request, f"`{agent}` notes for itself only", 3)
    if whose is None:
        return Refuse(request, "say whose note it is: `--agent NAME`", 2)
    if view.agent(whose) is None:
        return _nobody(view, request, whose)
    if detail["do"] == "done":
        return FinishTodo(whose, detail.get("todo", 0), request)
    if agent is not None and "added" in detail:
        return Refuse(
            request, f"what was noted elsewhere is for people to bring, and `{agent}` is an agent", 3
        )
    kinds = NOTES if "added" not in detail else OLD_NOTES
    if detail["do"] not in kinds:
        return Refuse(request, f"`{detail['do']}` is none of {', '.join(kinds)}, done", 2)
    if not detail.get("text", "").strip():
        return Refuse(request, "there is nothing to note; give a text", 2)
    try:
        added = None if "added" not in detail else datetime.fromisoformat(detail["added"]).timestamp()
    except (ValueError, OverflowError):
        added = -1.0
    if added is not None and not 0 <= added <= event.time:
        return Refuse(
            request, f"`{detail['added']}` is no time that has been; write it as 2026-01-31T12:00:00Z", 2
        )
    tags = [str(tag) for tag in detail.get("tags", ())]
    return Note(whose, detail["do"], detail["text"], tags, event.by, request, added)


def _message(event: Event, view: View, request: str, agent: str | None) -> Action:
    """Something to be said to an agent, to all, or to the person."""
    to, text = event.detail["to"], event.detail["text"]
    if to not in {"all", "human"} and view.agent(to) is None:
        return _nobody(view, request, to)
    if to == agent:
        return Refuse(
            request, "a message to yourself goes nowhere; `aipass note` keeps something for later", 2
        )
    if not text.strip():
        return Refuse(request, "there is nothing to say; give a text", 2)
    files = [str(path) for path in event.detail.get("files", ())]
    return Message(
        to,
        text,
        agent or "human",
        event.detail.get("subject"),
        files,
        event.detail.get("reply_to"),
        event.by,
        request,
    )


def _ask(event: Event, view: View, request: str, agent: str | None) -> Action:
    """A question that must be answered, of an agent or of the person."""
    to, text = event.detail["to"], event.detail["text"]
    if to != "human" and view.agent(to) is None:
        return _nobody(view, request, to)
    if to == (agent or "human"):
        return Refuse(request, "nobody can ask themselves; ask `human`, or another agent", 2)
    if not text.strip():
        return Refuse(request, "there is nothing to ask; give a text", 2)
    options = [str(option) for option in event.detail.get("options", ())]
    return Ask(to, text, agent or "human", options, event.detail.get("waits"), event.by, request)


def _read(event: Event, request: str, agent: str | None) -> Action:
    """Whoever asks has seen these messages; only those that are for them count."""
    ids = [one for one in event.detail["ids"] if isinstance(one, int)]
    return MarkRead(ids, agent or "human", event.by, request)


def _nobody(view: View, request: str, name: str) -> Refuse:
    return Refuse(
        request, f"there is no agent `{name}`; the agents are: {', '.join(view.agents()) or 'none yet'}", 2
    )


def _change(event: Event, view: View, request: str, verb: str) -> Action:
    dispatch = view.resolve(event.detail["id"])
    if dispatch is None:
        return Refuse(
            request, f"there is no dispatch `{event.detail['id']}`; `aipass dispatches` lists them", 1
        )
    if verb == "retry":
        return Retry(dispatch, request)
    who = view.agent_of_run(event.by) or "a person"
    return Cancel(dispatch, f"cancelled by {who}", request)
