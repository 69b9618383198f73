"""The inbox handler: dispatches a file in `inbox/<agent>/` to that agent. Pure.

A file that cannot be used is left unchanged, with a note beside it that has the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aipass_handlers import frontmatter

from aipass import Dispatch, Handler, Ignore, Reject, hookimpl
from aipass.event import one_line, printable
from aipass.sources import passing
from aipass.workspace.layout import REJECTED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aipass import Action, Event, View
    from aipass.config.model import Config


@hookimpl
def register_handlers(config: Config) -> list[Handler]:
    """Return the inbox handler; every configuration has it."""
    del config
    return [
        Handler("inbox", ("file.created", "file.closed"), on_file, paths=("/inbox/",), unless=is_not_meant)
    ]


def is_not_meant(event: Event) -> str | None:
    """Return why a file in the inbox is not a request, or not yet; None if it is one."""
    *folders, name = (event.path or "").split("/")
    if name.endswith(REJECTED):
        return "aipass wrote it: the note about a rejected file"
    if any(folder.startswith(".") or passing.find_folder(folder) for folder in folders):
        return "it is in another program's folder"
    if name.startswith("."):
        return "its name is that of a hidden file; rename it when it is complete"
    if (found := passing.find(name)) is not None:
        return f"its name is that of {_KINDS[found.kind]} ({found.tool}); rename it when it is complete"
    if (of := passing.control_of(name)) is not None:
        return f"its name is that of a download program's control file for {of}"
    # A regular file is complete at its close. Links, pipes and folders have no close, so their creation counts.
    if event.kind == "file.created" and "type" not in event.detail:
        return "it is not complete yet"
    return None


_KINDS = {
    "unfinished": "an unfinished file",
    "editor": "an editor's own file",
    "system": "the desktop's own file",
}


def on_file(event: Event, view: View) -> Iterable[Action]:
    """Dispatch the file to the agent of its folder, or reject or ignore it with the reason."""
    assert event.path is not None
    if event.detail.get("gone"):
        return [Ignore("it is gone already")]
    if event.detail.get("writing"):
        return [Ignore("a program is still writing it; aipass reads it when the file is closed")]
    if "control" in event.detail:
        return [Ignore(f"{event.detail['control']} is beside it: the download is not finished")]
    problem = _misplaced(event, view) or _unusable(event, view)
    if problem is not None:
        return [Reject(event.path, *problem)]
    agent, name = event.path.split("/")[1:]
    stem = name.rpartition(".")[0] or name
    common = {
        "agent": agent,
        "sender": event.path,
        "stem": stem,
        "file": event.path,
        "identity": event.detail["identity"],
    }
    if "text" not in event.detail:
        # The key is the content: the same file dropped twice is one dispatch (deduplication).
        told = f"A file was handed to you: {one_line(str(printable(name)))}."
        return [Dispatch(text=told, key=f"sha256:{event.detail['sha256']}", **common)]
    try:
        wanted = frontmatter.read(event.detail["text"])
    except ValueError as exc:
        return [Reject(event.path, str(exc), "correct it and save the file again")]
    if not wanted.text.strip():
        return [
            Reject(
                event.path,
                "there is nothing but front matter",
                "write the agent's task below it, and save the file again",
            )
        ]
    before = None if wanted.reply_to is None else view.resolve(wanted.reply_to)
    if wanted.reply_to is not None and before is None:
        problem = (
            f"there is no dispatch `{wanted.reply_to}` to reply to",
            "`aipass dispatches` lists them; save it again",
        )
        return [Reject(event.path, *problem)]
    wish = Dispatch(
        text=wanted.text, subject=wanted.subject, key=wanted.key, priority=wanted.priority, **common
    )
    return [replace(wish, reply_to=before)]


def _misplaced(event: Event, view: View) -> tuple[str, str] | None:
    parts = (event.path or "").split("/")
    names = ", ".join(view.agents()) or "none yet"
    if len(parts) == 2:
        return "a file here has no recipient", f"move it into inbox/<agent>/; the agents are: {names}"
    if view.agent(parts[1]) is None:
        return (
            f"there is no agent `{parts[1]}`",
            f"move it into another folder, or add [agents.{parts[1]}] to aipass.toml; the agents are: {names}",
        )
    if len(parts) > 3:
        return (
            "it is in a folder inside the inbox",
            f"put it into inbox/{parts[1]}/ itself; pack a folder as one file, or name its path in a request",
        )
    return None


def _unusable(event: Event, view: View) -> tuple[str, str] | None:
    kind = event.detail.get("type", "file")
    if kind != "file":
        return f"it is a {kind}, not a regular file", "put a copy of the content here"
    if "problem" in event.detail:
        return (
            f"it cannot be read: {event.detail['problem']}",
            "give the user who runs aipass permission to read it, and save it again",
        )
    if event.detail["size"] == 0:
        return "it is empty", "write the agent's task into it"
    limit = view.setting("inbox.max_size")
    if event.detail["size"] > limit:
        return (
            f"it has {event.detail['size']} bytes, and inbox.max_size is {limit}",
            "raise that limit in aipass.toml, or name the file's path in a request",
        )
    return None
