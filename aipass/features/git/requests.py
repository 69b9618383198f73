"""The request verbs `pr` and `commit`: they validate a request and turn it into actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aipass.action import ClosePr, MergePr, OpenPr
from aipass.core.verbs import Authority, Request, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aipass.action import Action

MAX_TITLE = 200
METHODS = ("merge", "squash", "ff")
#: Uses of `pr` that only people and the orchestrator may make. An agent that merges would review its own work.
ORCHESTRATOR = frozenset(("merge", "close"))


def pr(request: Request) -> Iterable[Action]:
    """Open, merge or close PRs; the field `do` says which. Refuses invalid fields (exit status 2 or 1), and an asker without the right (3)."""
    fields, do = request.fields, request.fields["do"]
    if do == "open":
        return _open(request, draft=False)
    if do not in ORCHESTRATOR:
        return request.refuse(f"`{do}` is none of open, merge, close", 2)
    # The length is limited because SQLite and the names of record files take no larger numbers.
    prs = [int(one) for one in fields.get("ids", ()) if str(one).isdecimal() and len(str(one)) < 16]
    if not prs or len(prs) != len(fields["ids"]):
        return request.refuse("name the PRs by their numbers; `aipass pr list` shows them", 2)
    if do == "close":
        return [ClosePr(prs, fields.get("reason") or "", request.id)]
    method = fields.get("method") or ""
    if method not in {"", *METHODS}:
        return request.refuse(f"`{method}` is none of {', '.join(METHODS)}", 2)
    return [MergePr(prs, method, request.id)]


def commit(request: Request) -> Iterable[Action]:
    """Commit the agent's changes to its draft branch, without a PR."""
    return _open(request, draft=True)


def _open(request: Request, *, draft: bool) -> Iterable[Action]:
    """A PR of one agent's changes: of the asking agent, or of the agent that a person names."""
    fields, view, agent = request.fields, request.view, request.agent
    title = (fields.get("title") or "").strip()
    if not title:
        return request.refuse('a PR needs a title: `-m "Add login"`', 2)
    if len(title) > MAX_TITLE:
        return request.refuse(
            f"a title has at most {MAX_TITLE} characters; give the rest with a second `-m`", 2
        )
    named = fields.get("dispatch")
    dispatch = None if named is None else view.resolve(named)
    if named is not None and dispatch is None:
        return request.refuse(f"there is no dispatch `{named}`; `aipass dispatches` lists them", 1)
    worker = None if dispatch is None else view.agent_of_dispatch(dispatch)
    whose = fields.get("agent") or worker
    if agent is not None and whose not in {None, agent}:
        return request.refuse(f"`{agent}` may open a PR of its own changes only")
    # With it an agent could put a person's unfinished edits into a commit under its own name.
    if agent is not None and fields.get("include"):
        return request.refuse(
            f"`--include` adds changes that others have made since, and `{agent}` may open a PR of its own changes only"
        )
    whose = agent or whose
    if whose is None:
        return request.refuse("name the author of the changes: `--agent NAME`, or `--dispatch ID`", 2)
    # For an agent this is a question of permission (refused, 3), for a person a mistake in the command (usage, 2).
    if worker not in {None, whose}:
        return request.refuse(f"dispatch {dispatch} is {worker}'s work, not {whose}'s", 3 if agent else 2)
    if view.agent(whose) is None:
        return request.no_agent(whose)
    return [
        OpenPr(
            whose,
            title,
            fields.get("body") or "",
            dispatch,
            request.event.by,
            paths=[str(path) for path in fields.get("paths", ())],
            include=fields.get("include", False),
            draft=draft,
            request=request.id,
        )
    ]


def _authority(fields: Mapping[str, Any]) -> Authority:
    return Authority.ORCHESTRATOR if fields.get("do") in ORCHESTRATOR else Authority.ANYONE


VERBS = (
    Verb(
        "pr",
        pr,
        {
            "do": (str, True),
            "title": (str, False),
            "body": (str, False),
            "agent": (str, False),
            "dispatch": (str, False),
            "paths": (list, False),
            "include": (bool, False),
            "ids": (list, False),
            "method": (str, False),
            "reason": (str, False),
        },
        _authority,
    ),
    Verb(
        "commit",
        commit,
        {"title": (str, True), "body": (str, False), "paths": (list, False), "include": (bool, False)},
        Authority.ANYONE,
    ),
)
